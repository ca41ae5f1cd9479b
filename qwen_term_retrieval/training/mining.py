"""Hard negatives: for each clip, the wrong terms that the model of the moment takes for right.

`nearest_wrong_terms` is exact and streams: queries and bank meet in blocks, so that a hundred thousand clips against a
hundred thousand terms need a few hundred MB beside the vectors. Two rules keep a mined term from being a right one:

- what was said in the clip, by label, by alias or by text, is never given (`excluded`);
- nor is a term that scores above `max_positive_ratio` of the clip's own positive: so near, it is more likely an
  unlabelled positive than a negative (NV-Retriever, arXiv 2407.15831, found 95 % best).

Shapes: C clips, Q queries (spans or windows; a clip may have several), N terms of the bank, K negatives, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

NO_TERM = -1
_QUERIES_AT_ONCE = 512
_TERMS_AT_ONCE = 16_384


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

    A clip's score for a term is the best of its queries'.

    Args:
        query_QD: unit vectors, on the device to search on; blocks of the bank visit it.
        clip_Q: the clip of each query, from 0 to C - 1.
        positive_score_Q: cosine of each query with the right term; `-inf` where it has none, then nothing is too near.
        bank_ND: unit vectors of the training terms, on any device.
        excluded: for each of the C clips, the rows of the bank that were said in it.
        k: terms a clip.
        max_positive_ratio: share of a positive score above which a term is too near; only positive scores bound.

    Returns:
        int32 (C, k), rows of the bank, -1 where there are fewer.
    """
    clip_Q = np.asarray(clip_Q, np.int64)
    ceiling_Q = torch.where(positive_score_Q > 0, positive_score_Q * max_positive_ratio, torch.inf)
    ceiling_Q = ceiling_Q.to(query_QD.device, torch.float32)
    scores, terms = [], []
    starts = range(0, len(query_QD), _QUERIES_AT_ONCE)
    for start in tqdm(starts, desc="mining negatives", unit="block", disable=not show_progress):
        block = slice(start, start + _QUERIES_AT_ONCE)
        score_QK, term_QK = _nearest_of_block(
            query_QD[block], ceiling_Q[block], bank_ND, _Exclusions.of(clip_Q[block], excluded), k
        )
        scores.append(score_QK.cpu().numpy())
        terms.append(term_QK.cpu().numpy())
    if not scores:
        return np.full((len(excluded), k), NO_TERM, np.int32)
    return _best_of_clips(
        np.repeat(clip_Q, scores[0].shape[1]), np.concatenate(terms), np.concatenate(scores), len(excluded), k
    )


class _Exclusions:
    """(query of the block, term) pairs that are never given, in the order of their terms."""

    def __init__(self, query: NDArray[np.int64], term: NDArray[np.int64]):
        order = np.argsort(term, kind="stable")
        self.query, self.term = query[order], term[order]

    @classmethod
    def of(cls, clip_Q: NDArray[np.int64], excluded: Sequence[Sequence[int]]) -> _Exclusions:
        counts = [len(excluded[clip]) for clip in clip_Q]
        terms = [term for clip in clip_Q for term in excluded[clip]]
        return cls(np.repeat(np.arange(len(clip_Q)), counts), np.asarray(terms, np.int64))

    def mask(self, score_QN: torch.Tensor, first_term: int) -> None:
        low, high = np.searchsorted(self.term, (first_term, first_term + score_QN.shape[1]))
        rows = torch.from_numpy(self.query[low:high]).to(score_QN.device)
        columns = torch.from_numpy(self.term[low:high] - first_term).to(score_QN.device)
        score_QN[rows, columns] = -torch.inf


def _nearest_of_block(
    query_QD: torch.Tensor, ceiling_Q: torch.Tensor, bank_ND: torch.Tensor, exclusions: _Exclusions, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores, terms) of a block of queries, each (Q, K); -inf where fewer than K terms qualify."""
    best_QK = query_QD.new_full((len(query_QD), 0), -torch.inf, dtype=torch.float32)
    term_QK = torch.zeros(len(query_QD), 0, dtype=torch.int64, device=query_QD.device)
    for first in range(0, len(bank_ND), _TERMS_AT_ONCE):
        bank_block_ND = bank_ND[first : first + _TERMS_AT_ONCE].to(query_QD.device, query_QD.dtype)
        score_QN = (query_QD @ bank_block_ND.T).float()
        exclusions.mask(score_QN, first)
        score_QN.masked_fill_(score_QN > ceiling_Q[:, None], -torch.inf)
        top = score_QN.topk(min(k, score_QN.shape[1]), dim=1)
        best_QK = torch.cat([best_QK, top.values], dim=1)
        term_QK = torch.cat([term_QK, top.indices + first], dim=1)
        best_QK, order_QK = best_QK.topk(min(k, best_QK.shape[1]), dim=1)
        term_QK = term_QK.gather(1, order_QK)
    return best_QK, term_QK


def _best_of_clips(
    clip: NDArray[np.int64], term_QK: NDArray[np.int64], score_QK: NDArray[np.float32], num_clips: int, k: int
) -> NDArray[np.int32]:
    """Merge the lists of each clip's queries: a term counts with its best score, equal scores go by row of the bank."""
    term, score = term_QK.ravel(), score_QK.ravel()
    found = np.isfinite(score)
    clip, term, score = clip[found], term[found], score[found]
    order = np.lexsort((-score, term, clip))
    clip, term, score = clip[order], term[order], score[order]
    first = np.ones(len(clip), bool)
    first[1:] = (clip[1:] != clip[:-1]) | (term[1:] != term[:-1])
    clip, term, score = clip[first], term[first], score[first]
    order = np.lexsort((term, -score, clip))
    clip, term = clip[order], term[order]
    place = np.arange(len(clip)) - np.searchsorted(clip, clip)
    table_CK = np.full((num_clips, k), NO_TERM, np.int32)
    table_CK[clip[place < k], place[place < k]] = term[place < k]
    return table_CK
