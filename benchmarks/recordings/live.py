"""A stream fed as a microphone feeds it, on a clock of its own.

The clock is the audio's: a block is there when its last sample was said. What the stream works on it is added, in the
seconds it took; while it works, blocks wait. So minutes of live audio are measured in the time that the work takes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.retriever import TermRetriever

BLOCK_SECONDS = 0.05
# A match belongs to a term that ends so near to it.
_NEAR_SECONDS = 0.5


def live(
    retriever: TermRetriever, pcm: np.ndarray, said: Sequence[tuple[str, float]], *, hop: float, threshold: float
) -> dict[str, Any]:
    """How long after the true end of a term its match came, how much of a core that took, and how scores differ.

    They differ from those of the same places heard as a search hears them.
    """
    size = int(BLOCK_SECONDS * SAMPLING_RATE)
    clock = worked_since = 0.0

    def microphone() -> Iterator[np.ndarray]:
        nonlocal clock, worked_since
        for first in range(0, len(pcm), size):
            clock += time.perf_counter() - worked_since  # what was done with the last block
            clock = max(clock, (first + size) / SAMPLING_RATE)
            worked_since = time.perf_counter()
            yield pcm[first : first + size]

    ends: dict[str, list[float]] = {}
    for term, end in said:
        ends.setdefault(term, []).append(end)
    cpu, worked_since = time.process_time(), time.perf_counter()
    delays: list[float] = []
    heard: list[TermMatch] = []
    for match in retriever.stream(microphone(), threshold=threshold, hop_seconds=hop):
        heard.append(match)
        now = clock + time.perf_counter() - worked_since
        near = [end for end in ends.get(match.term, []) if abs(end - match.end) <= _NEAR_SECONDS]
        if near:
            delays.append(now - min(near, key=lambda end: abs(end - match.end)))
    cpu = time.process_time() - cpu
    if not delays:
        raise ValueError("no term was found: give a lower --threshold")
    whole = list(retriever.stream([pcm], threshold=threshold, batch_size=8))
    differ = [
        abs(match.confidence - other.confidence)
        for match in heard
        for other in whole
        if match.term_id == other.term_id and match.overlaps(other)
    ]
    return {
        "hop_s": hop,
        "terms": len(said),
        "found": len(delays),
        "delay_median_s": float(np.median(delays)),
        "delay_p95_s": float(np.quantile(delays, 0.95)),
        "told": len(heard),
        "told_by_search": len(whole),
        "score_differs_median": float(np.median(differ)),
        "score_differs_most": max(differ),
        "cores": cpu / (len(pcm) / SAMPLING_RATE),
    }
