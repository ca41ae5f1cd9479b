"""The best terms of one part for each query: every row scored, or those rows alone that can be among the best.

With a sketch the search goes in three steps. All rows get the most that they can score (`Sketch.most`); the most
promising are scored in float32, which says what the last of the `top_k` scores at least; of the others, those that
cannot reach it are left out, by the closer bound of the sketch's tail too where there is one, and the rest are scored
in float32. So the answer is that of scoring every row.

Shapes: B queries, W windows, R rows (spellings), K results, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_term_retrieval.retrieval.indexes.parts import Part
from qwen_term_retrieval.retrieval.scoring import BestTerms, blocks_of_scores

_AT_ONCE = 8192
_MORE_THAN_ASKED = 64


@dataclass(frozen=True, eq=False)
class PartHits:
    """The best terms of a part for one query, best first: scores float32 (K,), places in the part and windows int64."""

    scores: NDArray[np.float32]
    places: NDArray[np.int64]
    windows: NDArray[np.int64]


NO_HITS = PartHits(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))


def search_part(
    part: Part, query_BWD: torch.Tensor, mask_BW: torch.Tensor, removed_T: NDArray[np.bool_] | None, top_k: int
) -> list[PartHits]:
    """The `top_k` best terms of each query that are not removed; none where a query has no window.

    Args:
        query_BWD: float32, on the CPU.
        mask_BW: bool, True where a window is real.
    """
    gone_R = None if removed_T is None else torch.from_numpy(part.terms.rows_of(removed_T))
    if part.vectors_RD.device.type == "cpu" and (part.sketch is not None or part.graph is not None):
        return _search_bounded(part, query_BWD, mask_BW, gone_R, top_k)
    return _search_all(part, query_BWD, mask_BW, gone_R, top_k)


def _search_all(
    part: Part, query_BWD: torch.Tensor, mask_BW: torch.Tensor, gone_R: torch.Tensor | None, top_k: int
) -> list[PartHits]:
    vectors_RD = part.vectors_RD
    device, num_queries = vectors_RD.device, len(query_BWD)
    query_BWD = query_BWD.to(device, vectors_RD.dtype)
    # Of the best `keep` spellings, at least `top_k` belong to different terms.
    keep = top_k * part.terms.most_rows
    term_of_row_R = torch.from_numpy(np.asarray(part.terms.term_of_row)).to(device, torch.int64)
    gone_R = None if gone_R is None else gone_R.to(device)
    best = BestTerms.empty(num_queries, device, aliases=keep > top_k)
    for rows, scores_BWR in blocks_of_scores(query_BWD, vectors_RD, None if mask_BW.all() else mask_BW):
        scores_BR = scores_BWR.amax(dim=1)
        if gone_R is not None:
            scores_BR.masked_fill_(gone_R[rows], -torch.inf)
        numbers_BR = torch.arange(rows.start, rows.start + scores_BR.shape[1], device=device).expand(num_queries, -1)
        best = best.merge(scores_BR, term_of_row_R[rows].expand(num_queries, -1), numbers_BR, keep)
    answers = []
    for query, (scores_K, terms_K, rows_K) in enumerate(zip(best.scores, best.terms, best.rows, strict=True)):
        found_K = (scores_K > -torch.inf).nonzero()[:top_k, 0]
        rows_K = rows_K[found_K]
        windows_K = _windows_of(vectors_RD[rows_K].to(query_BWD.dtype), query_BWD[query], mask_BW[query])
        answers.append(
            PartHits(scores_K[found_K].cpu().numpy(), terms_K[found_K].cpu().numpy(), windows_K.cpu().numpy())
        )
    return answers


def _windows_of(vectors_KD: torch.Tensor, query_WD: torch.Tensor, mask_W: torch.Tensor) -> torch.Tensor:
    """The window that scores best with each row, int64 (K,)."""
    scores_KW = vectors_KD @ query_WD.T
    return scores_KW.masked_fill(~mask_W.to(scores_KW.device), -torch.inf).argmax(dim=1)


def _search_bounded(
    part: Part, query_BWD: torch.Tensor, mask_BW: torch.Tensor, gone_R: torch.Tensor | None, top_k: int
) -> list[PartHits]:
    windows = [query_WD[mask_W] for query_WD, mask_W in zip(query_BWD, mask_BW, strict=True)]
    own_places = [mask_W.nonzero()[:, 0].numpy() for mask_W in mask_BW]
    sizes = [len(query_QD) for query_QD in windows]
    heard = [query for query, size in enumerate(sizes) if size]
    answers = [NO_HITS] * len(windows)
    if not heard:
        return answers
    if part.graph is not None:
        for query in heard:
            rows = part.graph.rows_near(windows[query], top_k)
            rows = rows if gone_R is None else rows[~gone_R[rows]]
            answers[query] = _Best(part, windows[query], top_k).add(rows).hits(own_places[query])
        return answers
    sketch = part.sketch
    if sketch is None:
        raise ValueError("a part without a sketch is searched row by row")
    turned_QD = sketch.rotated(torch.cat([windows[query] for query in heard]))
    most_BR = sketch.most(turned_QD, [sizes[query] for query in heard])
    if gone_R is not None:
        most_BR.masked_fill_(gone_R, -torch.inf)
    turned = turned_QD.split([sizes[query] for query in heard])
    for query, most_R, turned_WD in zip(heard, most_BR, turned, strict=True):
        best = _Best(part, windows[query], top_k)
        _add_what_can_be_best(best, most_R, partial(sketch.most_of, turned_WD) if sketch.has_tail else None)
        answers[query] = best.hits(own_places[query])
    return answers


def _add_what_can_be_best(
    best: _Best, most_R: torch.Tensor, closer: Callable[[torch.Tensor], torch.Tensor] | None
) -> None:
    """Score the rows in float32 that may be among the best, the most promising first.

    `most_R` is spent; `closer` gives a closer bound for some rows.
    """
    size = best.top_k * best.most_rows + _MORE_THAN_ASKED
    # Until enough different terms are scored, nothing is known of what they must reach.
    while best.least == -np.inf:
        top = most_R.topk(min(size, len(most_R)))
        rows = top.indices[top.values > -torch.inf]
        if not len(rows):
            return
        best.add(rows)
        most_R[rows] = -torch.inf
        size *= 2
    rows = (most_R >= best.least).nonzero()[:, 0]
    most_K = most_R[rows]
    if closer is not None and len(rows):
        most_K = closer(rows)
    order_K = most_K.argsort(descending=True)
    rows, most_K = rows[order_K], most_K[order_K]
    for first in range(0, len(rows), _AT_ONCE):
        if most_K[first] < best.least:
            return
        own = slice(first, first + _AT_ONCE)
        best.add(rows[own][most_K[own] >= best.least])


class _Best:
    """Rows of a part that were scored in float32, and what is known of the best terms from them."""

    def __init__(self, part: Part, query_WD: torch.Tensor, top_k: int):
        self.part, self.query_WD, self.top_k = part, query_WD, top_k
        self.most_rows = part.terms.most_rows
        self._rows, self._scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
        self.least = -np.inf
        """What the last of the best terms scores at least; -inf while there are fewer than asked for."""

    def add(self, rows: torch.Tensor) -> _Best:
        if len(rows):
            scores = (self.part.vectors_of(rows) @ self.query_WD.T).amax(dim=1)
            self._rows = np.concatenate([self._rows, rows.numpy()])
            self._scores = np.concatenate([self._scores, scores.numpy()])
            self._keep_the_best()
        return self

    def _keep_the_best(self) -> None:
        """The best row of each of the best terms, best first, equal scores in the order of the index."""
        order = np.lexsort((self._rows, -self._scores))
        terms = self.part.terms.term_of_row[self._rows[order]]
        if self.most_rows > 1:
            order = order[np.sort(np.unique(terms, return_index=True)[1])]
        order = order[: self.top_k]
        self._rows, self._scores = self._rows[order], self._scores[order]
        if len(order) == self.top_k:
            self.least = float(self._scores[-1])

    def hits(self, own_places: NDArray[np.int64]) -> PartHits:
        """`own_places`: where each of the windows stands in its query."""
        if not len(self._rows):
            return NO_HITS
        vectors_KD = self.part.vectors_of(torch.from_numpy(self._rows))
        windows_K = (vectors_KD @ self.query_WD.T).argmax(dim=1).numpy()
        terms_K = self.part.terms.term_of_row[self._rows].astype(np.int64)
        return PartHits(self._scores, terms_K, own_places[windows_K])
