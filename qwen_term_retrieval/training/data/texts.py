"""Texts of a run, encoded by all ranks together; where the text encoder is frozen, once, and kept in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from qwen_term_retrieval.batching import length_buckets
from qwen_term_retrieval.distributed import rank, sum_over_ranks, world_size
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.text.glossary import Glossary, Term
from qwen_term_retrieval.training.data.clips import TrainingClips

_TERMS_AT_ONCE = 256


def cache_frozen_texts(
    model: TermRetrievalModel, glossary: Glossary, clips: Iterable[TrainingClips], *, batch_size: int, quiet: bool
) -> None:
    """Encode all that the run will ask for, with a progress bar on rank 0; nothing where the encoder is trained.

    Every rank computes and keeps all vectors, see `TermRetrievalModel.cache_texts` for the memory. Without autocast the
    run takes the steps that it would take without the cache.

    Args:
        glossary: the training glossary: positives, bank negatives and mined ones.
        clips: to train on and to evaluate on; their texts and terms as they are spelled.
        batch_size: texts at a time.
    """
    if not model.has_frozen_text_encoder:
        return
    texts = list(glossary.texts)
    for each in clips:
        columns = each.rows.select_columns(["text", "terms"]).with_format("arrow")[:]
        texts += [text for text in columns["text"].to_pylist() if text.strip()]
        texts += [term for terms in columns["terms"].to_pylist() for term in terms]
    model.cache_texts(texts, batch_size=batch_size, show_progress=not quiet and rank() == 0)


def encode_by_all_ranks(
    model: TermRetrievalModel, terms: Sequence[Term], *, show_progress: bool = False
) -> torch.Tensor:
    """Unit vectors (N, D) of terms, each rank embedding its share: to the bit those of `encode_terms`, on every rank.

    The shares are of whole batches: how far a batch is padded shows in the last bit.
    """
    batches = list(length_buckets([len(term.text) for term in terms], _TERMS_AT_ONCE))
    own = [row for batch in batches[rank() :: world_size()] for row in batch]
    vectors_ND = torch.zeros(len(terms), model.config.embedding_dim)
    vectors_ND[own] = model.encode_terms(
        [terms[row].text for row in own],
        batch_size=_TERMS_AT_ONCE,
        show_progress=show_progress,
        languages=[terms[row].language for row in own],
    )
    return sum_over_ranks(vectors_ND.to(model.device))
