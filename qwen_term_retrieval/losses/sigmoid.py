"""The sigmoid loss (SigLIP, Zhai et al. 2023): every query and candidate is a yes-or-no question of its own.

With s the scaled cosine and b a learned bias, a positive costs softplus(-(s + b)), a negative softplus(s + b), and a
neutral pair nothing. There is no softmax over a batch, so scores mean the same whatever they are compared with: what a
threshold asks for. Positives, neutrals and negatives are those of `contrastive.py`.

The bias starts far below zero (-10): most pairs are negatives, and without it they would make the first steps.
"""

from __future__ import annotations

import torch

from qwen_term_retrieval.distributed import sum_over_ranks, world_size
from qwen_term_retrieval.losses.contrastive import Candidates, Queries
from qwen_term_retrieval.losses.score_blocks import BLOCK_ELEMENTS, negative_softplus_sum, softplus


def sigmoid_loss(
    queries: Queries,
    candidates: Candidates,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    *,
    window_temperature: float | None = None,
    block_elements: int = BLOCK_ELEMENTS,
) -> torch.Tensor:
    """Sum over all pairs of the global batch, divided by the number of its queries.

    Args:
        queries: this rank's queries.
        candidates: those of all ranks (`Candidates.gather`).
        logit_scale, logit_bias: scalars.
        window_temperature, block_elements: as in `contrastive_loss`.

    Returns:
        This rank's share, as in `contrastive_loss`: its mean over ranks is the loss of the global batch. Zero, with a
        gradient path, without a query or a candidate.

    Raises:
        ValueError: as `contrastive_loss`.

    >>> queries = Queries(torch.eye(2), torch.tensor([[0]]), torch.tensor([[7]]), torch.tensor([[-1]]))
    >>> candidates = Candidates(torch.eye(2), torch.tensor([7, 8]))
    >>> loss = sigmoid_loss(queries, candidates, torch.tensor(10.0), torch.tensor(-5.0))
    >>> round(loss.item(), 4)  # twice log(1 + 1 / e^5): for the right term a score of 5, for the wrong one of -5
    0.0134
    """
    table = queries.table(candidates.ids_N, window_temperature, block_elements)
    negatives_Q, positive_P = negative_softplus_sum(
        queries.vectors_VD, candidates.vectors_ND, logit_scale, logit_bias, table
    )
    num_queries = sum_over_ranks(torch.tensor(len(negatives_Q), device=negatives_Q.device)).clamp(min=1)
    total = negatives_Q.sum() + softplus(-(positive_P + logit_bias)).sum()
    return total * world_size() / num_queries
