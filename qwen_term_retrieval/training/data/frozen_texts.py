"""The texts of a run, encoded once where the text encoder is frozen: training then reads its vectors from memory."""

from __future__ import annotations

from collections.abc import Iterable

from qwen_term_retrieval.distributed import rank
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.training.data.clips import TrainingClips


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
