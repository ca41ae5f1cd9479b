"""All scores of queries against candidates, a block of queries at a time: never more than one block is in memory.

Two losses need few numbers of the whole table: the log-sum-exp of its negatives along both axes (InfoNCE), or the sum
of their softplus (sigmoid), and the scores of the positives. Each is an autograd function that runs over the blocks
once to get them, and once more in the backward pass, where a block's scores are computed again, turned into their own
gradients in place, and multiplied into the gradients of the embeddings. One table serves both directions of InfoNCE,
so this takes four products of its size where two separate cross-entropies take six, and less time than they do.

Memory is that of the embeddings, their gradients, and one block: all blocks are made in the same place, and turned into
what is wanted of them there. Queries are taken in the order of their number of windows, so that a query whose span is
known, one window, is not padded to the hundred of a clip where it is not.

Shapes: V vectors, Q queries, W windows, N candidates, D embedding, P pairs; R queries of one block, of up to W
windows, M windows of one block, S queries of a part of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from qwen_term_retrieval.losses.pairs import Pairs
from qwen_term_retrieval.losses.windows import reduce_windows_

# Scores in one block: 16 MB of float32. On a CPU larger blocks fall out of the cache and are no faster.
BLOCK_ELEMENTS = 2**22
# Sums of e^x need no maximum subtracted where no |x| is larger: e^60 is 1e26, and single precision ends at 3e38.
_LARGEST_EXPONENT = 60.0


@dataclass
class ScoreTable:
    """What is known of the table of scores before any is computed.

    Attributes:
        windows_QW: which vectors are the windows of a query; int64, padded at the end with -1. Queries come in the
            order of their number of windows.
        positives: pairs whose score is asked for.
        excluded: pairs that are no negatives; the positives are among them.
        window_temperature: see `reduce_windows_`; in cosines, None for the best window.
        block_elements: numbers that a block may hold: the scores of its windows, and what is made of them.
    """

    windows_QW: torch.Tensor
    positives: Pairs
    excluded: Pairs
    window_temperature: float | None = None
    block_elements: int = BLOCK_ELEMENTS

    def blocks(self, num_candidates: int, dim: int) -> list[_Block]:
        """Queries in portions that fit into a block.

        Raises:
            ValueError: a query has no window.
        """
        widths = (self.windows_QW >= 0).sum(1).tolist()
        if 0 in widths:
            raise ValueError("a query has no window: give each at least one row of vectors_VD in windows_QW")
        edges = _block_edges(widths, self.block_elements // max(1, num_candidates, dim))
        positive_edges, excluded_edges = self.positives.bounds(edges), self.excluded.bounds(edges)
        return [
            _Block(
                rows=slice(first, end),
                windows_RW=self.windows_QW[first:end, : widths[end - 1]],
                positive_rows=slice(*positive_edges[block : block + 2]),
                positives=_within(self.positives, positive_edges[block : block + 2], first),
                excluded=_within(self.excluded, excluded_edges[block : block + 2], first),
            )
            for block, (first, end) in enumerate(itertools.pairwise(edges))
        ]


@dataclass
class _Block:
    """Some queries: which, their windows, where the list of positives holds theirs, and their pairs, by row R."""

    rows: slice
    windows_RW: torch.Tensor
    positive_rows: slice
    positives: Pairs
    excluded: Pairs


def _block_edges(widths: list[int], rows_at_once: int) -> list[int]:
    """Where blocks begin and end: each within its number of rows of scores, and none half padding.

    A query of W windows takes W rows, padding counted, and two more while these become one.
    """
    edges = [0]
    for query, width in enumerate(widths):
        first = edges[-1]
        taken = (query - first + 1) * (width + 2 if width > 1 else 1)
        if query > first and (taken > rows_at_once or width > 2 * widths[first]):
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

    Raises:
        ValueError: a query has no window.
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

    Args:
        vectors_VD, candidates_ND, logit_scale, table: as `negative_log_sum_exp` takes them.
        logit_bias: a scalar.

    Returns:
        (Q,) and (P,), the latter without the bias; types as `negative_log_sum_exp`.

    Raises:
        ValueError: a query has no window.
    """
    with torch.autocast(vectors_VD.device.type, enabled=False):
        return _NegativeSoftplusSum.apply(vectors_VD, candidates_ND, logit_scale, logit_bias, table)


class _NegativeLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vectors_VD, candidates_ND, logit_scale, table):
        scores = _Scores(vectors_VD, candidates_ND, logit_scale, table)
        floor = torch.finfo(scores.vectors.dtype).min
        by_query_Q = scores.vectors.new_empty(len(table.windows_QW))
        by_candidate_N = scores.vectors.new_full((len(candidates_ND),), floor)
        positive_P = scores.vectors.new_empty(len(table.positives.query_P))
        for block in scores.blocks:
            scores_RN = scores.of_queries(block)
            positive_P[block.positive_rows] = scores_RN[block.positives]
            scores_RN[block.excluded] = floor
            by_query_Q[block.rows], of_block_N = _log_sum_exps(scores_RN, scores.fit_exp)
            by_candidate_N = torch.logaddexp(by_candidate_N, of_block_N)
        ctx.table = table
        ctx.save_for_backward(vectors_VD, candidates_ND, logit_scale, by_query_Q, by_candidate_N)
        return by_query_Q, by_candidate_N, positive_P

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_by_query_Q, grad_by_candidate_N, grad_positive_P):
        vectors_VD, candidates_ND, logit_scale, by_query_Q, by_candidate_N = ctx.saved_tensors
        scores = _Scores(vectors_VD, candidates_ND, logit_scale, ctx.table)
        by_candidate = by_candidate_N, grad_by_candidate_N

        def to_gradient(block: _Block, scores_RN: torch.Tensor) -> None:
            scores_RN[block.excluded] = torch.finfo(scores_RN.dtype).min
            _weigh_softmaxes(
                scores_RN, (by_query_Q[block.rows], grad_by_query_Q[block.rows]), by_candidate, scores.fit_exp
            )
            scores_RN[block.positives] = grad_positive_P[block.positive_rows]

        return *scores.gradients(to_gradient), None


def _log_sum_exps(scores_RN: torch.Tensor, fit_exp: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exps of the rows and of the columns, in the memory of the scores where `fit_exp`."""
    if not fit_exp:
        return scores_RN.logsumexp(1), scores_RN.logsumexp(0)
    floor = torch.finfo(scores_RN.dtype).min
    scores_RN.exp_()
    return scores_RN.sum(1).log_().clamp_(min=floor), scores_RN.sum(0).log_().clamp_(min=floor)


def _weigh_softmaxes(
    scores_RN: torch.Tensor,
    rows: tuple[torch.Tensor, torch.Tensor],
    columns: tuple[torch.Tensor, torch.Tensor],
    fit_exp: bool,
) -> None:
    """Turn scores into the sum of their softmax along both axes, weighed; of each its log-sum-exp and its weight."""
    (of_row_R, weight_R), (of_column_N, weight_N) = rows, columns
    if fit_exp:
        # Where there is no negative the log-sum-exp is the smallest number, and all exponentials are 0.
        factor_R = (-of_row_R).clamp(max=_LARGEST_EXPONENT).exp_() * weight_R
        factor_N = (-of_column_N).clamp(max=_LARGEST_EXPONENT).exp_() * weight_N
        for part_SN, factor_S in zip(_parts(scores_RN.exp_()), _parts(factor_R), strict=True):
            part_SN.mul_(factor_S[:, None] + factor_N)
        return
    for part_SN, of_row_S, weight_S in zip(*map(_parts, (scores_RN, of_row_R, weight_R)), strict=True):
        by_row_SN = (part_SN - of_row_S[:, None]).exp_().mul_(weight_S[:, None])
        part_SN.sub_(of_column_N).exp_().mul_(weight_N).add_(by_row_SN)


class _NegativeSoftplusSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vectors_VD, candidates_ND, logit_scale, logit_bias, table):
        scores = _Scores(vectors_VD, candidates_ND, logit_scale, table)
        sums_Q = scores.vectors.new_empty(len(table.windows_QW))
        positive_P = scores.vectors.new_empty(len(table.positives.query_P))
        for block in scores.blocks:
            scores_RN = scores.of_queries(block)
            positive_P[block.positive_rows] = scores_RN[block.positives]
            scores_RN[block.excluded] = torch.finfo(scores_RN.dtype).min
            parts = _parts(scores_RN.add_(logit_bias))
            sums_Q[block.rows] = torch.cat([softplus(part_SN).sum(1) for part_SN in parts])
        ctx.table = table
        ctx.save_for_backward(vectors_VD, candidates_ND, logit_scale, logit_bias)
        return sums_Q, positive_P

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_sums_Q, grad_positive_P):
        vectors_VD, candidates_ND, logit_scale, logit_bias = ctx.saved_tensors
        scores = _Scores(vectors_VD, candidates_ND, logit_scale, ctx.table)
        grad_bias = scores.vectors.new_zeros(())

        def to_gradient(block: _Block, scores_RN: torch.Tensor) -> None:
            scores_RN[block.excluded] = torch.finfo(scores_RN.dtype).min
            scores_RN.add_(logit_bias).sigmoid_().mul_(grad_sums_Q[block.rows, None])
            grad_bias.add_(scores_RN.sum())
            scores_RN[block.positives] = grad_positive_P[block.positive_rows]

        return *scores.gradients(to_gradient), grad_bias.to(logit_bias.dtype), None


class _Scores:
    """The scores of one block after another, all in the same memory, and what their gradients come to."""

    def __init__(
        self, vectors_VD: torch.Tensor, candidates_ND: torch.Tensor, logit_scale: torch.Tensor, table: ScoreTable
    ):
        self.given = vectors_VD, candidates_ND
        self.vectors, self.candidates = widened(vectors_VD), widened(candidates_ND)
        self.logit_scale = logit_scale
        self.softness = None if table.window_temperature is None else logit_scale * table.window_temperature
        self.blocks = table.blocks(*candidates_ND.shape)
        most_rows = max((block.windows_RW.numel() for block in self.blocks), default=0)
        largest = logit_scale * _largest_norm(self.vectors) * _largest_norm(self.candidates)
        self.fit_exp = bool(largest <= _LARGEST_EXPONENT)
        self.memory_MN = self.candidates.new_empty(most_rows, len(candidates_ND))

    def of_queries(self, block: _Block) -> torch.Tensor:
        """(R, N), which the caller may write into."""
        scores_RWN = self._of_windows(self._rows(block), block)
        return reduce_windows_(scores_RWN, block.windows_RW >= 0, self.softness)

    def gradients(
        self, to_gradient: Callable[[_Block, torch.Tensor], None]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Those of queries, candidates and scale, from a function that makes gradients of a block's scores in place."""
        grad_vectors, grad_candidates = torch.zeros_like(self.vectors), torch.zeros_like(self.candidates)
        grad_scale = self.vectors.new_zeros(())
        with torch.autocast(self.vectors.device.type, enabled=False):
            for block in self.blocks:
                rows_MD = self._rows(block)
                grad_MN, through_softness = self._gradients_of_windows(rows_MD, block, to_gradient)
                grad_rows_MD = grad_MN @ self.candidates
                grad_scale += (grad_rows_MD * rows_MD).sum() if through_softness is None else through_softness
                grad_vectors.index_add_(0, block.windows_RW.clamp(min=0).flatten(), grad_rows_MD.mul_(self.logit_scale))
                grad_candidates.addmm_(grad_MN.T, rows_MD.mul_(self.logit_scale))
        vectors_VD, candidates_ND = self.given
        return (
            grad_vectors.to(vectors_VD.dtype),
            grad_candidates.to(candidates_ND.dtype),
            grad_scale.to(self.logit_scale.dtype),
        )

    def _gradients_of_windows(
        self, rows_MD: torch.Tensor, block: _Block, to_gradient: Callable[[_Block, torch.Tensor], None]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gradients of every window's score (M, N), and of the scale where it has a share in softness as well."""
        scores_RWN = self._of_windows(rows_MD, block)
        reduced_RN = reduce_windows_(scores_RWN, block.windows_RW >= 0, self.softness, leave_shares=True)
        if scores_RWN.shape[1] == 1:
            to_gradient(block, reduced_RN)
            return reduced_RN, None
        # A soft maximum is the scale times a function of cosines alone, so the scale's gradient is that of a product.
        before_RN = None if self.softness is None else reduced_RN / self.logit_scale
        to_gradient(block, reduced_RN)
        through_softness = None if before_RN is None else torch.vdot(reduced_RN.flatten(), before_RN.flatten())
        return scores_RWN.mul_(reduced_RN[:, None]).flatten(0, 1), through_softness

    def _rows(self, block: _Block) -> torch.Tensor:
        """The vectors (M, D) of all windows of a block; any vector where there is no window."""
        return self.vectors.index_select(0, block.windows_RW.clamp(min=0).flatten())

    def _of_windows(self, rows_MD: torch.Tensor, block: _Block) -> torch.Tensor:
        scaled_MD = (self.logit_scale * rows_MD).to(self.candidates.dtype)
        memory_MN = self.memory_MN[: len(rows_MD)]
        return torch.mm(scaled_MD, self.candidates.T, out=memory_MN).unflatten(0, block.windows_RW.shape)


def _parts(rows_RN: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Eighths of a block: what is made of one is an eighth of a block."""
    return rows_RN.split(max(1, -(-len(rows_RN) // 8)))


def _largest_norm(vectors_VD: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(vectors_VD, dim=1).max() if len(vectors_VD) else vectors_VD.new_zeros(())


def softplus(logits: torch.Tensor) -> torch.Tensor:
    """log(1 + e^x), exact in double precision: PyTorch's own drops what is below 2e-9, from 20 on."""
    return F.softplus(logits, threshold=40.0)


def widened(embeddings: torch.Tensor) -> torch.Tensor:
    """A temperature of 0.01 leaves half-precision scores one digit."""
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()
