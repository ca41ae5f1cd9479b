"""Hard negatives: wrong terms chosen for each clip, that it alone is compared with.

They are embedded in the same forward pass as everything else, so gradients reach them. Private columns, not one shared
pool: shared pools of 128 and more mined negatives collapsed from a cold start, private ones of 1,024 did not (RASST,
2026). With s the scaled cosine and H a query's hard negatives,

    InfoNCE:  mean over positives p of  softplus( log sum over h in H of e^s_h  -  s_p )
    sigmoid:  sum over h in H of  softplus(s_h + bias)

A negative that is said in the clip, under whatever alias, is left out.

Shapes: V vectors, Q queries, W windows, K negatives of a query, N rows of a bank, D embedding, P positives, M ids said;
R queries of one block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.autograd.function import once_differentiable

from qwen_term_retrieval.distributed import sum_over_ranks, world_size
from qwen_term_retrieval.losses.contrastive import Candidates, Queries
from qwen_term_retrieval.losses.pairs import NO_ID, positions_of
from qwen_term_retrieval.losses.score_blocks import BLOCK_ELEMENTS, softplus, widened
from qwen_term_retrieval.losses.windows import reduce_windows_


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
        ValueError: a negative was not embedded, an id stands twice in a bank, or a query has no window.

    >>> queries = Queries(torch.eye(2), torch.tensor([[0]]), torch.tensor([[7]]), torch.tensor([[-1]]))
    >>> term = Candidates(torch.tensor([[0.8, 0.6]]), torch.tensor([7]))
    >>> wrong = Candidates(torch.tensor([[0.6, 0.8]]), torch.tensor([9]))
    >>> loss = hard_negative_loss(queries, term, wrong, torch.tensor([[9]]), torch.tensor(10.0))
    >>> round(loss.item(), 4)  # log(1 + e^(6 - 8))
    0.1269
    """
    if bool((queries.windows_QW < 0).all(1).any()):
        raise ValueError("a query has no window: give each at least one row of vectors_VD in windows_QW")
    negative_rows_QK = positions_of(negative_ids_QK, negatives.ids_N)
    if bool(((negative_rows_QK < 0) & (negative_ids_QK != NO_ID)).any()):
        raise ValueError("negative_ids_QK holds an id that is not among the embedded hard negatives")
    wanted_QK = (negative_rows_QK >= 0) & ~_said(negative_ids_QK, queries)

    def score(bank: Candidates, rows_QK: torch.Tensor) -> torch.Tensor:
        if not len(bank.ids_N):  # a gradient path, to nothing
            return torch.zeros_like(rows_QK) * (queries.vectors_VD.sum() + bank.vectors_ND.sum() + logit_scale)
        with torch.autocast(bank.vectors_ND.device.type, enabled=False):
            return _OwnScores.apply(
                queries.vectors_VD,
                bank.vectors_ND,
                logit_scale,
                queries.windows_QW,
                rows_QK,
                window_temperature,
                block_elements,
            )

    negative_QK = score(negatives, negative_rows_QK)
    if logit_bias is not None:
        counts_Q = wanted_QK.any(1)
        total = (softplus(negative_QK + logit_bias) * wanted_QK).sum()
    else:
        positive_rows_QP = positions_of(queries.positive_ids_QP, candidates.ids_N)
        there_QP = positive_rows_QP >= 0
        counts_Q = wanted_QK.any(1) & there_QP.any(1)
        floor = torch.finfo(negative_QK.dtype).min
        negatives_Q1 = negative_QK.masked_fill(~wanted_QK, floor).logsumexp(1, keepdim=True)
        loss_QP = softplus(negatives_Q1 - score(candidates, positive_rows_QP)) * there_QP
        total = (loss_QP.sum(1) / there_QP.sum(1).clamp(min=1) * counts_Q).sum()
    return total * world_size() / sum_over_ranks(counts_Q.sum()).clamp(min=1)


def _said(ids_QK: torch.Tensor, queries: Queries) -> torch.Tensor:
    """Which ids are said in the clip of their query. A column of ids at a time: all at once are Q · K · M."""
    said_QK = torch.zeros_like(ids_QK, dtype=torch.bool)
    for ids_QM in (queries.positive_ids_QP, queries.neutral_ids_QM):
        for said_Q in ids_QM.unbind(1):
            said_QK |= ids_QK == said_Q[:, None]
    return said_QK


class _OwnScores(torch.autograd.Function):
    """Scaled cosines (Q, K) of each query with rows of a bank of its own: (N, D) and (Q, K); any score for row -1.

    What is gathered for a block is gathered again in the backward pass, and its gradients are added to those of the
    bank there and then: autograd would make a gradient of the whole bank for every block.
    """

    @staticmethod
    def forward(ctx, vectors_VD, bank_ND, logit_scale, windows_QW, rows_QK, window_temperature, block_elements):
        ctx.softness = None if window_temperature is None else logit_scale * window_temperature
        ctx.block_elements = block_elements
        scores_QK = widened(bank_ND).new_empty(rows_QK.shape)
        for block in _blocks(windows_QW, rows_QK, bank_ND.shape[1], block_elements):
            _, _, scores_RWK = _scores_of_block(vectors_VD, bank_ND, logit_scale, windows_QW[block], rows_QK[block])
            scores_QK[block] = reduce_windows_(scores_RWK, windows_QW[block] >= 0, ctx.softness)
        ctx.save_for_backward(vectors_VD, bank_ND, logit_scale, windows_QW, rows_QK, scores_QK)
        return scores_QK

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_QK):
        vectors_VD, bank_ND, logit_scale, windows_QW, rows_QK, scores_QK = ctx.saved_tensors
        grad_vectors, grad_bank = torch.zeros_like(widened(vectors_VD)), torch.zeros_like(widened(bank_ND))
        with torch.autocast(bank_ND.device.type, enabled=False):
            for block in _blocks(windows_QW, rows_QK, bank_ND.shape[1], ctx.block_elements):
                windows_RW, rows_RK = windows_QW[block], rows_QK[block]
                scaled_RWD, chosen_RKD, scores_RWK = _scores_of_block(
                    vectors_VD, bank_ND, logit_scale, windows_RW, rows_RK
                )
                reduce_windows_(scores_RWK, windows_RW >= 0, ctx.softness, leave_shares=True)
                if scores_RWK.shape[1] == 1:
                    grad_RWK = grad_QK[block][:, None]
                else:
                    grad_RWK = scores_RWK.mul_(grad_QK[block][:, None])
                grad_RWD = (grad_RWK @ chosen_RKD).mul_(logit_scale)
                grad_vectors.index_add_(0, windows_RW.clamp(min=0).flatten(), grad_RWD.flatten(0, 1))
                torch.matmul(grad_RWK.transpose(1, 2), scaled_RWD, out=chosen_RKD)
                grad_bank.index_add_(0, rows_RK.clamp(min=0).flatten(), chosen_RKD.flatten(0, 1))
        # A score is the scale times a function of cosines alone, softness and all.
        grad_scale = torch.vdot(grad_QK.flatten(), scores_QK.flatten()) / logit_scale
        gradients = (grad_vectors.to(vectors_VD.dtype), grad_bank.to(bank_ND.dtype), grad_scale.to(logit_scale.dtype))
        return *gradients, None, None, None, None


def _blocks(windows_QW: torch.Tensor, rows_QK: torch.Tensor, dim: int, block_elements: int) -> Iterator[slice]:
    size = max(1, block_elements // max(1, dim * (rows_QK.shape[1] + windows_QW.shape[1])))
    return (slice(first, first + size) for first in range(0, len(rows_QK), size))


def _scores_of_block(
    vectors_VD: torch.Tensor,
    bank_ND: torch.Tensor,
    logit_scale: torch.Tensor,
    windows_RW: torch.Tensor,
    rows_RK: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scaled vectors (R, W, D) of the windows, chosen rows (R, K, D) of the bank, and the scores (R, W, K) of both."""
    chosen_RKD = widened(_chosen(bank_ND, rows_RK))
    scaled_RWD = (logit_scale * widened(_chosen(vectors_VD, windows_RW))).to(chosen_RKD.dtype)
    return scaled_RWD, chosen_RKD, scaled_RWD @ chosen_RKD.transpose(1, 2)


def _chosen(vectors_VD: torch.Tensor, rows_RK: torch.Tensor) -> torch.Tensor:
    """(R, K, D); any vector where the row is -1."""
    return vectors_VD.index_select(0, rows_RK.clamp(min=0).flatten()).unflatten(0, rows_RK.shape)
