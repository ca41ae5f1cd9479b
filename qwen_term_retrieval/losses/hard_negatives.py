"""Hard negatives: wrong terms chosen for each clip, that it alone is compared with.

They are embedded in the same forward pass as everything else, so gradients reach them. Private columns, not one shared
pool: shared pools of 128 and more mined negatives collapsed from a cold start, private ones of 1,024 did not (RASST,
2026). With s the scaled cosine and H a query's hard negatives,

    InfoNCE:  mean over positives p of  softplus( log sum over h in H of e^s_h  -  s_p )
    sigmoid:  sum over h in H of  softplus(s_h + bias)

A negative that is said in the clip, under whatever alias, is left out.

Shapes: V vectors, Q queries, W windows, K negatives of a query, M candidates of this rank, D embedding, P positives;
R queries of one block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from qwen_term_retrieval.losses.contrastive import Candidates, Queries
from qwen_term_retrieval.losses.distributed import sum_over_ranks, world_size
from qwen_term_retrieval.losses.pairs import NO_ID, positions_of
from qwen_term_retrieval.losses.score_blocks import BLOCK_ELEMENTS, softplus, widened
from qwen_term_retrieval.losses.windows import reduce_windows


def hard_negative_loss(
    queries: Queries,
    candidates: Candidates,
    negatives: Candidates,
    negative_ids_QK: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None = None,
    *,
    window_temperature: float | None = None,
    block_elements: int = BLOCK_ELEMENTS,
) -> torch.Tensor:
    """Each query's positives against its own hard negatives.

    Args:
        queries: this rank's queries.
        candidates: this rank's own terms, not gathered; the positives of its queries are among them.
        negatives: this rank's hard negatives, each id once.
        negative_ids_QK: which of them are whose; int64, padded with -1. An id that is not in `negatives` is an error.
        logit_scale: inverse temperature, a scalar.
        logit_bias: with it, the sigmoid form; without, InfoNCE.
        window_temperature: as in `contrastive_loss`.
        block_elements: numbers in memory at a time, of the negatives and windows of some queries.

    Returns:
        This rank's share, as in `contrastive_loss`, of the mean over the queries that have a negative (InfoNCE: and a
        positive) in the global batch. Zero, with a gradient path, where none has.

    Raises:
        ValueError: a negative was not embedded.
    """
    negative_rows_QK = positions_of(negative_ids_QK, negatives.ids_N)
    if bool(((negative_rows_QK < 0) & (negative_ids_QK != NO_ID)).any()):
        raise ValueError("negative_ids_QK holds an id that is not among the embedded hard negatives")
    positive_rows_QP = positions_of(queries.positive_ids_QP, candidates.ids_N)
    said_QM = torch.cat([queries.positive_ids_QP, queries.neutral_ids_QM], 1)

    def block_loss(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        own_RK = (negative_ids_QK[rows, :, None] == said_QM[rows, None]).any(2)
        wanted_RK = (negative_rows_QK[rows] >= 0) & ~own_RK
        score = _scorer(queries, rows, logit_scale, window_temperature)
        negative_RK = score(negatives.vectors_ND, negative_rows_QK[rows])
        if logit_bias is not None:
            return (softplus(negative_RK + logit_bias) * wanted_RK).sum(), wanted_RK.any(1).sum()
        positive_RP = score(candidates.vectors_ND, positive_rows_QP[rows])
        there_RP = positive_rows_QP[rows] >= 0
        counts_R = wanted_RK.any(1) & there_RP.any(1)
        floor = torch.finfo(negative_RK.dtype).min
        negatives_R1 = negative_RK.masked_fill(~wanted_RK, floor).logsumexp(1, keepdim=True)
        loss_R = (softplus(negatives_R1 - positive_RP) * there_RP).sum(1) / there_RP.sum(1).clamp(min=1)
        return (loss_R * counts_R).sum(), counts_R.sum()

    num_queries, num_negatives = negative_ids_QK.shape
    vectors_at_once = block_elements // queries.vectors_VD.shape[1]
    size = max(1, vectors_at_once // (num_negatives + queries.windows_QW.shape[1]))
    blocks = [slice(first, first + size) for first in range(0, num_queries, size)]
    # A gradient path even where there is no query, or nothing to compare it with.
    total = (queries.vectors_VD.sum() + candidates.vectors_ND.sum() + negatives.vectors_ND.sum() + logit_scale) * 0
    count = torch.zeros((), dtype=torch.long, device=total.device)
    if len(negatives.ids_N) and len(candidates.ids_N):
        for rows in blocks:
            loss, num = block_loss(rows) if len(blocks) == 1 else checkpoint(block_loss, rows, use_reentrant=False)
            total, count = total + loss, count + num
    return total * world_size() / sum_over_ranks(count).clamp(min=1)


def _scorer(
    queries: Queries, rows: slice, logit_scale: torch.Tensor, window_temperature: float | None
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function that scores these queries, each against rows of a bank of its own: (M, D) and (R, K) to (R, K)."""
    windows_RW = queries.windows_QW[rows]
    vectors_RWD = _chosen(queries.vectors_VD, windows_RW)
    softness = None if window_temperature is None else logit_scale * window_temperature

    def score(bank_MD: torch.Tensor, rows_RK: torch.Tensor) -> torch.Tensor:
        with torch.autocast(bank_MD.device.type, enabled=False):
            chosen_RKD = widened(_chosen(bank_MD, rows_RK))
            scores_RWK = logit_scale * torch.einsum("rwd,rkd->rwk", vectors_RWD.to(chosen_RKD.dtype), chosen_RKD)
        return reduce_windows(scores_RWK, windows_RW >= 0, softness)

    return score


def _chosen(vectors_VD: torch.Tensor, rows_RK: torch.Tensor) -> torch.Tensor:
    """(R, K, D); any vector where the row is -1."""
    return vectors_VD.index_select(0, rows_RK.clamp(min=0).flatten()).unflatten(0, rows_RK.shape)
