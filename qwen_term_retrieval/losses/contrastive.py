"""Multi-positive InfoNCE between spoken queries and candidate terms, the same on N ranks as on one.

A query is a piece of a clip: one vector (its span is known, or the clip is one span), or several windows, of which the
best counts or a soft maximum (`windows.py`). A candidate is a term, or a chunk text, embedded once however often the
global batch holds it. For each query a candidate is one of three:

- positive: it is what was said there;
- neutral: it is said elsewhere in the same clip, or is an alias of it, or part of it; it takes no part in the loss;
- negative: everything else.

With s the scaled cosine and N the negatives, a query with positives P costs

    mean over p in P of  -log( e^s_p / (e^s_p + sum over n in N of e^s_n) )

so positives do not compete with each other (the "out" form of supervised contrastive learning, Khosla et al. 2020).
The same is done in the other direction, each candidate choosing among the queries, and the two are averaged.

Each rank scores its own queries against the candidates of all ranks; for the other direction the ranks exchange one
number a candidate, so no query ever leaves its rank.

Shapes: V vectors, Q queries, W windows, N candidates, D embedding; P and M padded lists of ids (padding is -1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qwen_term_retrieval.distributed import gather_rows, sum_over_ranks, world_size
from qwen_term_retrieval.losses.pairs import NO_ID, Pairs, matching_pairs
from qwen_term_retrieval.losses.score_blocks import BLOCK_ELEMENTS, ScoreTable, negative_log_sum_exp, softplus

__all__ = ["NO_ID", "Candidates", "Queries", "contrastive_loss"]


@dataclass
class Queries:
    """The spoken side of one loss, on one rank.

    Attributes:
        vectors_VD: unit norm, of any float type; pooled spans of the batch. Several queries may share one.
        windows_QW: which of them are the query's windows, at least one (one where the span is known); int64, padded at
            the end with -1.
        positive_ids_QP: ids of what was said in the query; int64, padded with -1.
        neutral_ids_QM: ids that must not be negatives of the query; int64, padded with -1.
    """

    vectors_VD: torch.Tensor
    windows_QW: torch.Tensor
    positive_ids_QP: torch.Tensor
    neutral_ids_QM: torch.Tensor

    def table(self, ids_N: torch.Tensor, window_temperature: float | None, block_elements: int) -> ScoreTable:
        """Their scores against candidates of these ids, in the order of their number of windows."""
        order_Q = (self.windows_QW >= 0).sum(1).argsort(stable=True)
        positive_ids_QP = self.positive_ids_QP[order_Q]
        return ScoreTable(
            self.windows_QW[order_Q],
            positives=matching_pairs(positive_ids_QP, ids_N),
            excluded=matching_pairs(torch.cat([positive_ids_QP, self.neutral_ids_QM[order_Q]], 1), ids_N),
            window_temperature=window_temperature,
            block_elements=block_elements,
        )


@dataclass
class Candidates:
    """What queries choose among.

    Attributes:
        vectors_ND: unit norm, of any float type.
        ids_N: int64, from 0, each once.
    """

    vectors_ND: torch.Tensor
    ids_N: torch.Tensor

    def gather(self) -> Candidates:
        """The candidates of all ranks, each once, differentiably."""
        vectors_ND, ids_N = gather_rows(self.vectors_ND), gather_rows(self.ids_N)
        first_N = first_occurrences(ids_N)
        if len(first_N) == len(ids_N):
            return Candidates(vectors_ND, ids_N)
        return Candidates(vectors_ND.index_select(0, first_N), ids_N[first_N])


def contrastive_loss(
    queries: Queries,
    candidates: Candidates,
    logit_scale: torch.Tensor,
    *,
    window_temperature: float | None = None,
    block_elements: int = BLOCK_ELEMENTS,
) -> torch.Tensor:
    """Symmetric multi-positive InfoNCE over the global batch.

    Args:
        queries: this rank's queries.
        candidates: those of all ranks (`Candidates.gather`).
        logit_scale: inverse temperature, a scalar.
        window_temperature: None scores a query by its best window; a number, in cosines, softens that maximum, see
            `reduce_windows_`.
        block_elements: scores held in memory at a time.

    Returns:
        This rank's share of the loss: its mean over ranks, which is what DDP takes of the gradients, is the loss of
        the global batch. A scalar, float32 (float64 for float64 embeddings) also under autocast. Zero, with a gradient
        path, where no query has a positive.

    Raises:
        ValueError: an id stands twice among the candidates, or a query has no window.

    >>> heard = torch.eye(3)[:2].requires_grad_()
    >>> padding = torch.tensor([[-1], [-1]])
    >>> queries = Queries(heard, torch.tensor([[0], [1]]), torch.tensor([[7], [8]]), padding)
    >>> candidates = Candidates(torch.eye(3), torch.tensor([7, 8, 9])).gather()
    >>> loss = contrastive_loss(queries, candidates, torch.tensor(3.0))
    >>> round(loss.item(), 4)  # log(1 + 2 / e^3) and log(1 + 1 / e^3), halved
    0.0718
    """
    table = queries.table(candidates.ids_N, window_temperature, block_elements)
    by_query_Q, by_candidate_N, positive_P = negative_log_sum_exp(
        queries.vectors_VD, candidates.vectors_ND, logit_scale, table
    )
    if world_size() > 1:
        by_candidate_N = gather_rows(by_candidate_N[None]).logsumexp(0)
    query_weight_P, candidate_weight_P = _pair_weights(
        table.positives, len(by_query_Q), len(by_candidate_N), positive_P.dtype
    )
    # One positive's term is -log(e^s / (e^s + e^n)) = softplus(n - s), with n the log-sum-exp of the negatives.
    as_query_P = softplus(by_query_Q.index_select(0, table.positives.query_P) - positive_P)
    as_candidate_P = softplus(by_candidate_N.index_select(0, table.positives.candidate_P) - positive_P)
    return (as_query_P * query_weight_P + as_candidate_P * candidate_weight_P).sum() * (world_size() / 2)


def _pair_weights(
    positives: Pairs, num_queries: int, num_candidates: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight of each positive pair in the mean over queries and in that over candidates of the global batch."""
    positives_Q = positives.query_P.bincount(minlength=num_queries)
    positives_N = sum_over_ranks(positives.candidate_P.bincount(minlength=num_candidates))
    queries_chosen = sum_over_ranks((positives_Q > 0).sum())
    candidates_chosen = (positives_N > 0).sum()
    query_weight_P = (positives_Q[positives.query_P] * queries_chosen).to(dtype).reciprocal()
    return query_weight_P, (positives_N[positives.candidate_P] * candidates_chosen).to(dtype).reciprocal()


def first_occurrences(ids_N: torch.Tensor) -> torch.Tensor:
    """Positions of the first occurrence of each id, in order of position: the same on every rank.

    >>> first_occurrences(torch.tensor([7, 3, 7, 9]))
    tensor([0, 1, 3])
    """
    _, inverse = torch.unique(ids_N, return_inverse=True)
    position = torch.arange(len(ids_N), device=ids_N.device)
    first = torch.full((int(inverse.max()) + 1 if len(ids_N) else 0,), len(ids_N), device=ids_N.device)
    return first.scatter_reduce(0, inverse, position, "amin").sort().values
