"""Hard negatives: for each clip, the wrong terms that the model of the moment takes for right.

`nearest_wrong_terms` is exact and streams: clips and bank meet in blocks of scores, so that a hundred thousand clips
against a hundred thousand terms need a few hundred MB beside the vectors. Two rules keep a mined term from being a
right one, whichever of the clip's queries finds it:

- what was said in the clip, by label, by alias or by text, is never given (`excluded`);
- nor is a term that any query of the clip scores above `max_positive_ratio` of that query's own positive: so near, it
  is more likely an unlabelled positive than a negative (NV-Retriever, arXiv 2407.15831, found 95 % best).

Shapes: C clips, Q queries (spans or windows; a clip may have several), N terms of the bank, K negatives, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.retrieval.scoring import blocks_of_scores

NO_TERM = -1
_QUERIES_AT_ONCE = 512
_SCORES_AT_ONCE = 1 << 23


@torch.inference_mode()
def nearest_wrong_terms(
    query_QD: torch.Tensor,
    clip_Q: Sequence[int] | NDArray[np.int64],
    positive_score_Q: torch.Tensor,
    bank_ND: torch.Tensor,
    excluded: Sequence[Sequence[int]],
    k: int,
    *,
    max_positive_ratio: float = 0.95,
    show_progress: bool = False,
) -> NDArray[np.int32]:
    """The `k` best-scoring terms of each clip that are neither excluded nor too near to be wrong, best first.

    A clip's score for a term is the best of its queries'; a term that is too near to one of them is out for all.

    Args:
        query_QD: unit vectors, on the device to search on; blocks of the bank visit it.
        clip_Q: the clip of each query, from 0 to C - 1, ascending.
        positive_score_Q: cosine of each query with the right term; `-inf` where it has none, then nothing is too near.
        bank_ND: unit vectors of the training terms, on any device.
        excluded: for each of the C clips, the rows of the bank that were said in it.
        k: terms a clip.
        max_positive_ratio: share of a positive score above which a term is too near; only positive scores bound.

    Returns:
        int32 (C, k), rows of the bank, -1 where there are fewer.

    Raises:
        ValueError: the queries of a clip do not stand together.
    """
    clip_Q = np.asarray(clip_Q, np.int64)
    if (np.diff(clip_Q) < 0).any():
        raise ValueError("clip_Q must ascend: sort the queries by their clips")
    ceiling_Q = torch.where(positive_score_Q > 0, positive_score_Q * max_positive_ratio, torch.inf)
    ceiling_Q = ceiling_Q.to(query_QD.device, torch.float32)
    clips, count_C = np.unique(clip_Q, return_counts=True)
    end_C = np.cumsum(count_C)
    table_CK = np.full((len(excluded), k), NO_TERM, np.int32)
    with Progress(total=len(clips), desc="nearest terms", unit="clip", shown=show_progress, leave=None) as bar:
        for block in _blocks_of_clips(count_C):
            queries = slice(end_C[block.start] - count_C[block.start], end_C[block.stop - 1])
            exclusions = _Exclusions([excluded[clip] for clip in clips[block]])
            found_CK = _nearest_of_block(
                query_QD[queries], ceiling_Q[queries], count_C[block].tolist(), bank_ND, exclusions, k
            )
            table_CK[clips[block], : found_CK.shape[1]] = found_CK
            bar.update(len(found_CK))
    return table_CK


def _blocks_of_clips(count_C: NDArray[np.int64]) -> Iterator[slice]:
    """Runs of whole clips with up to `_QUERIES_AT_ONCE` queries, or of one clip that has more."""
    first, queries = 0, 0
    for clip, count in enumerate(count_C.tolist()):
        if queries and queries + count > _QUERIES_AT_ONCE:
            yield slice(first, clip)
            first, queries = clip, 0
        queries += count
    if queries:
        yield slice(first, len(count_C))


class _Exclusions:
    """(clip of the block, term) pairs that are never given, in the order of their terms."""

    def __init__(self, excluded: Sequence[Sequence[int]]):
        clip = np.repeat(np.arange(len(excluded)), [len(terms) for terms in excluded])
        term = np.fromiter((term for terms in excluded for term in terms), np.int64, len(clip))
        order = np.argsort(term, kind="stable")
        self.clip, self.term = clip[order], term[order]

    def mask(self, score_CN: torch.Tensor, first_term: int) -> None:
        low, high = np.searchsorted(self.term, (first_term, first_term + score_CN.shape[1]))
        rows = torch.from_numpy(self.clip[low:high]).to(score_CN.device)
        columns = torch.from_numpy(self.term[low:high] - first_term).to(score_CN.device)
        score_CN[rows, columns] = -torch.inf


def _nearest_of_block(
    query_QD: torch.Tensor,
    ceiling_Q: torch.Tensor,
    counts: list[int],
    bank_ND: torch.Tensor,
    exclusions: _Exclusions,
    k: int,
) -> NDArray[np.int64]:
    """The best terms (C, K) of clips with `counts` queries each; NO_TERM behind where fewer than K qualify."""
    best_CK = query_QD.new_empty((len(counts), 0), dtype=torch.float32)
    term_CK = torch.empty(len(counts), 0, dtype=torch.int64, device=query_QD.device)
    for rows, score_Q1N in blocks_of_scores(query_QD[:, None], bank_ND, block_scores=_SCORES_AT_ONCE):
        score_CN = _scores_of_clips(score_Q1N[:, 0], ceiling_Q, counts)
        exclusions.mask(score_CN, rows.start)
        top = score_CN.topk(min(k, score_CN.shape[1]), dim=1)
        best_CK = torch.cat([best_CK, top.values], dim=1)
        term_CK = torch.cat([term_CK, top.indices + rows.start], dim=1)
        best_CK, order_CK = best_CK.topk(min(k, best_CK.shape[1]), dim=1)
        term_CK = term_CK.gather(1, order_CK)
    return _in_order(best_CK.cpu().numpy(), term_CK.cpu().numpy())


def _scores_of_clips(score_QN: torch.Tensor, ceiling_Q: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The best score (C, N) among each clip's queries; -inf where one is above its ceiling. Writes on its input."""
    too_near_QN = score_QN > ceiling_Q[:, None]
    if len(counts) == len(score_QN):
        return score_QN.masked_fill_(too_near_QN, -torch.inf)
    # Infinite, what is too near to one query is still so in the maximum over the clip's queries.
    score_QN.masked_fill_(too_near_QN, torch.inf)
    score_CN = torch.stack([of_clip_QN.amax(dim=0) for of_clip_QN in score_QN.split(counts)])
    return score_CN.masked_fill_(score_CN == torch.inf, -torch.inf)


def _in_order(score_CK: NDArray[np.float32], term_CK: NDArray[np.int64]) -> NDArray[np.int64]:
    """Terms by score, equal scores by row of the bank."""
    term_CK = np.where(np.isfinite(score_CK), term_CK, NO_TERM)
    return np.take_along_axis(term_CK, np.lexsort((term_CK, -score_CK), axis=1), axis=1)
