"""The terms that lie nearest to the windows of a chunk: what is proposed, or answered where nothing is verified.

Shapes: B chunks, W windows, N terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qwen_term_retrieval.models.embeddings import AudioEmbeddings
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.matches import TermMatch

# How many terms are listened to again: among 10,000, the right one is seldom further down.
NUM_CANDIDATES = 200
# How often more a chunk may say its terms.
MOST_AGAIN = 50

# Place of a term in the index, cosine, start and end in seconds of the recording.
Place = tuple[int, float, float, float]


def places_again(
    windows: AudioEmbeddings, index: TermIndex, chunk: int, found: Sequence[Place], least: Sequence[float]
) -> list[Place]:
    """Other places of a chunk at which a window is near to a term that was found in it, nearest first.

    They overlap neither one another nor what was found.

    Args:
        chunk: which row of the windows.
        found: as `nearest_places` gives it.
        least: cosine of a place, of each.
    """
    if not found:
        return []
    real_W = windows.mask[chunk]
    spans_W2 = windows.spans[chunk][real_W]
    vectors_WD = windows.vectors[chunk][real_W.to(windows.vectors.device)]
    scores_WN = index.cosines_by_window(vectors_WD, [place for place, *_ in found])
    again: list[Place] = []
    for (place, _, *edges), lowest, scores_W in zip(found, least, scores_WN.T, strict=True):
        start, end = edges
        for _ in range(MOST_AGAIN):
            overlapping_W = (spans_W2[:, 0] < end) & (spans_W2[:, 1] > start)
            scores_W = scores_W.masked_fill(overlapping_W, -math.inf)
            score, window = scores_W.max(dim=0)
            if score < lowest or not math.isfinite(score):
                break
            start, end = spans_W2[window].tolist()
            again.append((place, float(score), start, end))
    return sorted(again, key=lambda each: -each[1])


def nearest(windows: AudioEmbeddings, index: TermIndex, top_k: int, logit_scale: float) -> list[list[TermMatch]]:
    """The nearest terms of each chunk by cosine, best first, each with the span of its best window."""
    found = weighed_places(windows, index, top_k, logit_scale)
    return [[match_at(index, *place) for place in own] for own in found]


def nearest_each_time(
    windows: AudioEmbeddings, index: TermIndex, top_k: int, logit_scale: float, threshold: float
) -> list[list[TermMatch]]:
    """Of the nearest terms of each chunk those that reach the threshold, or their own, each time that they are said."""
    answers = []
    for row, places in enumerate(weighed_places(windows, index, top_k, logit_scale)):
        told = [(place, match) for place in places if (match := match_at(index, *place)).reaches(threshold)]
        more = (np.log(index.weights([place for (place, *_), _ in told])) / logit_scale).tolist()
        more_of = {place: extra for ((place, *_), _), extra in zip(told, more, strict=True)}
        least = [
            (threshold if match.threshold is None else match.threshold) - more_of[place] for (place, *_), match in told
        ]
        again = places_again(windows, index, row, [place for place, _ in told], least)
        answers.append(
            [match for _, match in told]
            + [match_at(index, place, min(1.0, score + more_of[place]), *span) for place, score, *span in again]
        )
    return answers


def weighed_places(windows: AudioEmbeddings, index: TermIndex, top_k: int, logit_scale: float) -> list[list[Place]]:
    """`nearest_places` by what the weights of terms make of their cosines.

    A term's weight multiplies its share of the model's softmax: `log(weight) / logit_scale` comes on top of its cosine.
    """
    if not index.has_weights:
        return nearest_places(windows, index, top_k)
    answers = []
    for found in nearest_places(windows, index, max(top_k, NUM_CANDIDATES)):
        extra = np.log(index.weights([place for place, *_ in found])) / logit_scale
        weighed = [
            (place, min(1.0, score + more), start, end)
            for (place, score, start, end), more in zip(found, extra.tolist(), strict=True)
        ]
        answers.append(sorted(weighed, key=lambda each: -each[1])[:top_k])
    return answers


def nearest_places(windows: AudioEmbeddings, index: TermIndex, top_k: int) -> list[list[Place]]:
    """Place in the index, cosine, start and end in seconds of the nearest terms of each chunk, best first."""
    hits = index.search(windows.vectors, top_k, mask_BW=windows.mask)
    answers = []
    for row, spans_W2 in enumerate(windows.spans.tolist()):
        columns = zip(hits.terms[row].tolist(), hits.scores[row].tolist(), hits.windows[row].tolist(), strict=True)
        # A chunk may own no window.
        answers.append([(term, score, *spans_W2[window]) for term, score, window in columns if score > -math.inf])
    return answers


def match_at(
    index: TermIndex, place: int, score: float, start: float, end: float, probability: float | None = None
) -> TermMatch:
    """The term at a place of the index, as it was heard; times in seconds."""
    term = index.terms[place]
    return TermMatch(
        term.text,
        score,
        round(start, 3),
        round(end, 3),
        term.term_id,
        term.language,
        probability=probability,
        threshold=term.threshold,
    )
