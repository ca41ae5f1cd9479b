"""All scores of queries against candidates, a block of queries at a time: never more than one block is in memory.

Two losses need few numbers of the whole table: the log-sum-exp of its negatives along both axes (InfoNCE), or the sum
of their softplus (sigmoid), and the scores of the positives. Each is an autograd function that runs over the blocks
once to get them, and once more in the backward pass, where a block's scores are computed again, turned into their own
gradients in place, and multiplied into the gradients of the embeddings. One table serves both directions of InfoNCE,
so this takes four products of its size where two separate cross-entropies take six, and less time than they do.

Memory is that of the embeddings, their gradients, and two blocks. Queries are taken in the order of their number of
windows, so that a query whose span is known, one window, is not padded to the hundred of a clip where it is not.

Shapes: V vectors, Q queries, W windows, N candidates, D embedding, P pairs; R queries of one block, of up to W windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from qwen_term_retrieval.losses.pairs import Pairs
from qwen_term_retrieval.losses.windows import reduce_windows

# Scores in one block: 16 MB of float32. On a CPU larger blocks fall out of the cache and are no faster.
BLOCK_ELEMENTS = 2**22


@dataclass
class ScoreTable:
    """What is known of the table of scores before any is computed.

    Attributes:
        windows_QW: which vectors are the windows of a query; int64, padded at the end with -1. Queries come in the
            order of their number of windows.
        positives: pairs whose score is asked for.
        excluded: pairs that are no negatives; the positives are among them.
        window_temperature: see `reduce_windows`; in cosines, None for the best window.
        block_elements: scores of one block, those of all windows counted.
    """

    windows_QW: torch.Tensor
    positives: Pairs
    excluded: Pairs
    window_temperature: float | None = None
    block_elements: int = BLOCK_ELEMENTS

    def blocks(self, num_candidates: int) -> Iterator[_Block]:
        widths = (self.windows_QW >= 0).sum(1).clamp(min=1).tolist()
        edges = _block_edges(widths, self.block_elements // max(1, num_candidates))
        positive_edges, excluded_edges = self.positives.bounds(edges), self.excluded.bounds(edges)
        for block in range(len(edges) - 1):
            rows = slice(edges[block], edges[block + 1])
            yield _Block(
                rows=rows,
                windows_RW=self.windows_QW[rows, : widths[rows.stop - 1]],
                positive_rows=slice(positive_edges[block], positive_edges[block + 1]),
                positives=_within(self.positives, positive_edges[block : block + 2], edges[block]),
                excluded=_within(self.excluded, excluded_edges[block : block + 2], edges[block]),
            )


@dataclass
class _Block:
    """Some queries: which, their windows, where the list of positives holds theirs, and their pairs, by row R."""

    rows: slice
    windows_RW: torch.Tensor
    positive_rows: slice
    positives: Pairs
    excluded: Pairs


def _block_edges(widths: list[int], windows_at_once: int) -> list[int]:
    """Where blocks begin and end: each within its number of windows, padding counted, and none half padding."""
    edges = [0]
    for query, width in enumerate(widths):
        first = edges[-1]
        if query > first and ((query - first + 1) * width > windows_at_once or width > 2 * widths[first]):
            edges.append(query)
    return [*edges, len(widths)] if widths else edges


def _within(pairs: Pairs, edges: list[int], first_query: int) -> Pairs:
    rows = slice(*edges)
    return Pairs(pairs.query_P[rows] - first_query, pairs.candidate_P[rows])


def negative_log_sum_exp(
    vectors_VD: torch.Tensor, candidates_ND: torch.Tensor, logit_scale: torch.Tensor, table: ScoreTable
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-sum-exp of the scaled cosines of the negatives, by query and by candidate, and the scores of the positives.

    Args:
        vectors_VD: unit norm; the queries' windows.
        candidates_ND: unit norm.
        logit_scale: a scalar.
        table: which vectors are whose windows, and which pairs are positive or excluded.

    Where a query or a candidate has no negative its log-sum-exp is the smallest finite number, not -inf: what is
    computed from it must cost 0 and send no NaN back.

    Returns:
        (Q,), (N,) and (P,), float32 (float64 for float64 embeddings), differentiable.
    """
    with torch.autocast(vectors_VD.device.type, enabled=False):
        return _NegativeLogSumExp.apply(vectors_VD, candidates_ND, logit_scale, table)


def negative_softplus_sum(
    vectors_VD: torch.Tensor,
    candidates_ND: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    table: ScoreTable,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over the negatives of each query of softplus(scaled cosine + bias), and the scores of the positives.

    Returns:
        (Q,) and (P,), the latter without the bias; types as `negative_log_sum_exp`.
    """
    with torch.autocast(vectors_VD.device.type, enabled=False):
        return _NegativeSoftplusSum.apply(vectors_VD, candidates_ND, logit_scale, logit_bias, table)


class _NegativeLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vectors_VD, candidates_ND, logit_scale, table):
        vectors, candidates = widened(vectors_VD), widened(candidates_ND)
        floor = torch.finfo(vectors.dtype).min
        by_query_Q = vectors.new_empty(len(table.windows_QW))
        by_candidate_N = vectors.new_full((len(candidates),), floor)
        positive_P = vectors.new_empty(len(table.positives.query_P))
        for block in table.blocks(len(candidates)):
            scores_RN = _block_scores(block, vectors, candidates, logit_scale, table)
            positive_P[block.positive_rows] = scores_RN[block.positives]
            scores_RN[block.excluded] = floor
            by_query_Q[block.rows] = scores_RN.logsumexp(1)
            by_candidate_N = torch.logaddexp(by_candidate_N, scores_RN.logsumexp(0))
            del scores_RN  # before the next block is made
        ctx.table = table
        ctx.save_for_backward(vectors_VD, candidates_ND, logit_scale, by_query_Q, by_candidate_N)
        return by_query_Q, by_candidate_N, positive_P

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_by_query_Q, grad_by_candidate_N, grad_positive_P):
        vectors_VD, candidates_ND, logit_scale, by_query_Q, by_candidate_N = ctx.saved_tensors
        floor = torch.finfo(by_query_Q.dtype).min

        def gradient(block: _Block, scores_RN: torch.Tensor) -> torch.Tensor:
            rows = block.rows
            scores_RN[block.excluded] = floor
            grad_RN = (scores_RN - by_query_Q[rows, None]).exp_().mul_(grad_by_query_Q[rows, None])
            grad_RN.add_(scores_RN.sub_(by_candidate_N).exp_().mul_(grad_by_candidate_N))
            grad_RN[block.positives] = grad_positive_P[block.positive_rows]
            return grad_RN

        return *_propagate(vectors_VD, candidates_ND, logit_scale, ctx.table, gradient), None


class _NegativeSoftplusSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vectors_VD, candidates_ND, logit_scale, logit_bias, table):
        vectors, candidates = widened(vectors_VD), widened(candidates_ND)
        sums_Q = vectors.new_empty(len(table.windows_QW))
        positive_P = vectors.new_empty(len(table.positives.query_P))
        for block in table.blocks(len(candidates)):
            scores_RN = _block_scores(block, vectors, candidates, logit_scale, table)
            positive_P[block.positive_rows] = scores_RN[block.positives]
            scores_RN[block.excluded] = torch.finfo(scores_RN.dtype).min
            sums_Q[block.rows] = F.softplus(scores_RN.add_(logit_bias)).sum(1)
            del scores_RN  # before the next block is made
        ctx.table = table
        ctx.save_for_backward(vectors_VD, candidates_ND, logit_scale, logit_bias)
        return sums_Q, positive_P

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_sums_Q, grad_positive_P):
        vectors_VD, candidates_ND, logit_scale, logit_bias = ctx.saved_tensors
        grad_bias = torch.zeros_like(logit_bias)

        def gradient(block: _Block, scores_RN: torch.Tensor) -> torch.Tensor:
            scores_RN[block.excluded] = torch.finfo(scores_RN.dtype).min
            grad_RN = scores_RN.add_(logit_bias).sigmoid_().mul_(grad_sums_Q[block.rows, None])
            grad_bias.add_(grad_RN.sum())
            grad_RN[block.positives] = grad_positive_P[block.positive_rows]
            return grad_RN

        gradients = _propagate(vectors_VD, candidates_ND, logit_scale, ctx.table, gradient)
        return *gradients, grad_bias, None


def _block_scores(
    block: _Block, vectors: torch.Tensor, candidates: torch.Tensor, logit_scale: torch.Tensor, table: ScoreTable
) -> torch.Tensor:
    """The scores (R, N) of a block, which the caller may write into."""
    softness = None if table.window_temperature is None else logit_scale * table.window_temperature
    scores_RWN = _window_scores(_rows(vectors, block.windows_RW), candidates, logit_scale)
    return reduce_windows(scores_RWN, block.windows_RW >= 0, softness)


def _propagate(
    vectors_VD: torch.Tensor,
    candidates_ND: torch.Tensor,
    logit_scale: torch.Tensor,
    table: ScoreTable,
    gradient: Callable[[_Block, torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of queries, candidates and scale, from a function that gives those of a block's scores.

    `gradient` may write into the scores it is given.
    """
    vectors, candidates = widened(vectors_VD), widened(candidates_ND)
    grad_vectors, grad_candidates = torch.zeros_like(vectors), torch.zeros_like(candidates)
    grad_scale = vectors.new_zeros(())

    # A function, so that a block is freed before the next is made.
    def propagate_block(block: _Block) -> None:
        vectors_RWD = _rows(vectors, block.windows_RW)
        scores_RWN = _window_scores(vectors_RWD, candidates, logit_scale)
        if scores_RWN.shape[1] == 1:
            grad_RWN = gradient(block, scores_RWN[:, 0])[:, None]
        else:
            grad_RWN, grad_of_softness = _through_windows(scores_RWN, block, logit_scale, table, gradient)
            grad_scale.add_(grad_of_softness)
        grad_scaled_RWD = (grad_RWN.flatten(0, 1) @ candidates).view_as(vectors_RWD)
        grad_scale.add_((grad_scaled_RWD * vectors_RWD).sum())
        grad_vectors.index_add_(
            0, block.windows_RW.clamp(min=0).flatten(), (grad_scaled_RWD * logit_scale).flatten(0, 1)
        )
        grad_candidates.addmm_(grad_RWN.flatten(0, 1).T, (logit_scale * vectors_RWD).flatten(0, 1))

    with torch.autocast(vectors.device.type, enabled=False):
        for block in table.blocks(len(candidates)):
            propagate_block(block)
    return (
        grad_vectors.to(vectors_VD.dtype),
        grad_candidates.to(candidates_ND.dtype),
        grad_scale.to(logit_scale.dtype),
    )


def _through_windows(scores_RWN, block, logit_scale, table, gradient) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of every window's score, and what the scale gets through the softness of their maximum."""
    scale = logit_scale.detach().requires_grad_()
    with torch.enable_grad():
        softness = None if table.window_temperature is None else scale * table.window_temperature
        scores_RWN = scores_RWN.requires_grad_()
        reduced_RN = reduce_windows(scores_RWN, block.windows_RW >= 0, softness)
    grad_RN = gradient(block, reduced_RN.detach().clone())
    grad_RWN, grad_scale = torch.autograd.grad(reduced_RN, (scores_RWN, scale), grad_RN, allow_unused=True)
    return grad_RWN, torch.zeros_like(logit_scale) if grad_scale is None else grad_scale


def _window_scores(vectors_RWD: torch.Tensor, candidates_ND: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    scaled_RWD = (logit_scale * vectors_RWD).to(candidates_ND.dtype)
    return (scaled_RWD.flatten(0, 1) @ candidates_ND.T).unflatten(0, vectors_RWD.shape[:2])


def _rows(vectors_VD: torch.Tensor, windows_RW: torch.Tensor) -> torch.Tensor:
    """The windows' vectors (R, W, D); any vector where there is no window."""
    return vectors_VD.index_select(0, windows_RW.clamp(min=0).flatten()).unflatten(0, windows_RW.shape)


def widened(embeddings: torch.Tensor) -> torch.Tensor:
    """A temperature of 0.01 leaves half-precision scores one digit."""
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()
