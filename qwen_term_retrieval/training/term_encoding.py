"""Terms of an evaluation or a mining, embedded by all ranks together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qwen_term_retrieval.batching import length_buckets
from qwen_term_retrieval.distributed import rank, sum_over_ranks, world_size
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.text.glossary import Term

_TERMS_AT_ONCE = 256


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
