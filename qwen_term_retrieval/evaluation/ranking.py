"""Where the right term stands in the ranking, and what follows from it: Recall@k, MRR and their intervals.

Everything is exact and done in blocks: the Q × N score matrix is never whole in memory, so a bank of a million
terms needs no more than a bank of a thousand. Rank 1 is best. Two rules keep the numbers honest:

- Ties count against us: a wrong term that scores the same as the right one (to within `TIE_TOLERANCE`, because the
  last bits of a matrix product depend on its shape) stands before it. A model that gives every term the same score
  is last everywhere, not first.
- Where a clip holds several right terms, none of them is a wrong term for another: they are left out of the count.

Shapes: Q queries (clips), W windows, N terms of the bank, P (query, right term) pairs, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from qwen_term_retrieval.retrieval.scoring import blocks_of_scores

TIE_TOLERANCE = 1e-6
_QUERY_BLOCK = 256


def rank_of_gold(
    query_vectors: torch.Tensor,
    bank_vectors: torch.Tensor,
    gold: Sequence[Sequence[int]],
    *,
    window_mask: torch.Tensor | None = None,
) -> NDArray[np.int64]:
    """Rank of the best-placed right term of every query.

    Args:
        query_vectors: (Q, D), or (Q, W, D) where a query's score for a term is its best window's.
        bank_vectors: (N, D), on any device; blocks of it visit the queries' device.
        gold: for every query, the rows of `bank_vectors` that are right. At least one each.
        window_mask: (Q, W) bool, True where a window is real.

    Returns:
        int64 (Q,), from 1 to N.

    Raises:
        ValueError: a query without a right term, a row outside the bank, a shape that does not fit, a vector that
            is not finite (a NaN compares false with everything and would rank first).
    """
    ranks_P = rank_of_each_gold(query_vectors, bank_vectors, gold, window_mask=window_mask)
    if not len(gold):
        return ranks_P
    return np.minimum.reduceat(ranks_P, np.cumsum([0, *(len(rows) for rows in gold[:-1])]))


def rank_of_each_gold(
    query_vectors: torch.Tensor,
    bank_vectors: torch.Tensor,
    gold: Sequence[Sequence[int]],
    *,
    window_mask: torch.Tensor | None = None,
) -> NDArray[np.int64]:
    """Rank of every right term of every query, flat (P,), in the order of `gold`. Otherwise as `rank_of_gold`."""
    query_QWD = query_vectors[:, None] if query_vectors.ndim == 2 else query_vectors
    _check_inputs(query_QWD, bank_vectors, gold, window_mask)
    blocks = [
        _rank_block(
            query_QWD[first : first + _QUERY_BLOCK].float(),
            bank_vectors,
            gold[first : first + _QUERY_BLOCK],
            None if window_mask is None else window_mask[first : first + _QUERY_BLOCK],
        )
        for first in range(0, len(query_QWD), _QUERY_BLOCK)
    ]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.int64)


def rank_of_gold_in_scores(scores_QN: ArrayLike | torch.Tensor, gold: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Rank of the best-placed right term where the scores are at hand, higher being better (a string matcher's, say).

    Same rules as `rank_of_gold`; ties are read on the scores' own scale, so bring them to about [0, 1] first.
    """
    scores_QN = torch.as_tensor(scores_QN, dtype=torch.float32)
    if scores_QN.ndim != 2 or bool(scores_QN.isnan().any()):
        raise ValueError(f"expected scores (Q, N) without NaN, got shape {tuple(scores_QN.shape)}")
    _check_gold(gold, *scores_QN.shape)
    ranks = np.empty(len(gold), np.int64)
    for query, rows in enumerate(gold):
        bar = scores_QN[query, list(rows)].max() - TIE_TOLERANCE
        ahead_N = scores_QN[query] >= bar
        ahead_N[list(rows)] = False
        ranks[query] = 1 + int(ahead_N.sum())
    return ranks


@torch.inference_mode()
def _rank_block(
    query_QWD: torch.Tensor, bank_ND: torch.Tensor, gold: Sequence[Sequence[int]], mask_QW: torch.Tensor | None
) -> NDArray[np.int64]:
    device = query_QWD.device
    query_P = torch.tensor([query for query, rows in enumerate(gold) for _ in rows], device=device)
    term_P = torch.tensor([row for rows in gold for row in rows], device=device)

    gold_ND, column_P = torch.unique(term_P, return_inverse=True)
    ((_, gold_QWN),) = blocks_of_scores(query_QWD, bank_ND[gold_ND.to(bank_ND.device)], mask_QW, block_scores=1 << 62)
    gold_QN = gold_QWN.amax(dim=1)
    bar_P1 = (gold_QN[query_P, column_P] - TIE_TOLERANCE)[:, None]

    rank_P = torch.ones(len(term_P), dtype=torch.int64, device=device)
    for rows, scores_QWN in blocks_of_scores(query_QWD, bank_ND, mask_QW):
        scores_QN = scores_QWN.amax(dim=1)
        inside_P = (term_P >= rows.start) & (term_P < rows.stop)
        scores_QN[query_P[inside_P], term_P[inside_P] - rows.start] = -torch.inf
        rank_P += (scores_QN[query_P] >= bar_P1).sum(dim=1)
    return rank_P.cpu().numpy()


def _check_inputs(
    query_QWD: torch.Tensor, bank_ND: torch.Tensor, gold: Sequence[Sequence[int]], mask_QW: torch.Tensor | None
) -> None:
    if query_QWD.ndim != 3 or bank_ND.ndim != 2 or query_QWD.shape[-1] != bank_ND.shape[-1]:
        raise ValueError(
            f"query vectors {tuple(query_QWD.shape)} do not fit bank vectors {tuple(bank_ND.shape)}: "
            "expected (Q, D) or (Q, W, D) against (N, D)"
        )
    _check_gold(gold, len(query_QWD), len(bank_ND))
    if mask_QW is not None:
        if mask_QW.shape != query_QWD.shape[:2]:
            raise ValueError(f"window mask {tuple(mask_QW.shape)} does not fit queries {tuple(query_QWD.shape)}")
        if not bool(mask_QW.any(dim=1).all()):
            raise ValueError(f"query {int((~mask_QW.any(dim=1)).nonzero()[0])} has no window")
        query_QWD = query_QWD[mask_QW.to(query_QWD.device)]
    for name, vectors in (("query", query_QWD), ("bank", bank_ND)):
        # A sum over the last axis is finite only if every element is; it spares a bank-sized mask.
        if not bool(vectors.sum(dim=-1, dtype=torch.float32).isfinite().all()):
            raise ValueError(f"a {name} vector is not finite; ranks would be meaningless")


def _check_gold(gold: Sequence[Sequence[int]], num_queries: int, num_terms: int) -> None:
    if len(gold) != num_queries:
        raise ValueError(f"{num_queries} queries but {len(gold)} lists of right terms")
    for query, rows in enumerate(gold):
        if not len(rows):
            raise ValueError(f"query {query} has no right term; leave no-term clips out of the ranking")
        if min(rows) < 0 or max(rows) >= num_terms:
            raise ValueError(f"query {query}: right terms {list(rows)} lie outside the bank of {num_terms}")


def recall_at_k(ranks: ArrayLike, k: int) -> float:
    """Share of queries whose right term stands among the first `k`.

    >>> recall_at_k([1, 3, 11, 2], k=10)
    0.75
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    return float(np.mean(_checked_ranks(ranks) <= k))


def mean_reciprocal_rank(ranks: ArrayLike) -> float:
    """Mean of 1 / rank.

    >>> mean_reciprocal_rank([1, 2])
    0.75
    """
    return float(np.mean(1.0 / _checked_ranks(ranks)))


def _checked_ranks(ranks: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(ranks)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"expected at least one rank in one dimension, not shape {array.shape}")
    if array.min() < 1:
        raise ValueError(f"ranks count from 1; got {array.min()}")
    return array


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile-bootstrap interval of the mean of `values` (Efron 1979), over queries; the same for the same seed.

    Recall@k is the mean of `ranks <= k`; a difference between two systems on the same queries is the mean of the
    per-query differences, which makes the interval a paired one. Where all values are equal the interval has no
    width: resampling cannot show what the sample does not hold.

    Raises:
        ValueError: no value, a value that is not finite, a confidence outside (0, 1).
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"expected at least one finite value in one dimension, not shape {array.shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    generator = np.random.default_rng(seed)
    means = [array[generator.integers(array.size, size=array.size)].mean() for _ in range(num_resamples)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
