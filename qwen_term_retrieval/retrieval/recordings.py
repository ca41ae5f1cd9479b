"""Recordings in files, one after another: each where a term was heard best, or each time that it is said."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE, pcm_blocks
from qwen_term_retrieval.audio.sound_files import opened_sound
from qwen_term_retrieval.errors import BadAudioError
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.retriever import TermRetriever

logger = logging.getLogger(__name__)

# What is found is given after so many, and so many share the work of the towers.
_FILES_AT_ONCE = 32


@dataclass(frozen=True)
class Heard:
    """What was heard in a recording: matches, best first, and the nearest term, heard or not; None in silence."""

    recording: Path
    matches: list[TermMatch]
    nearest: TermMatch | None


def check_recordings(recordings: Sequence[Path]) -> None:
    """Refuse what is no recording, before a model is loaded.

    Raises:
        BadAudioError: naming the file.
    """
    for recording in recordings:
        try:
            with opened_sound(recording):
                pass
        except BadAudioError as error:
            raise BadAudioError(f"{recording}: {error}") from error


def search_recordings(
    retriever: TermRetriever,
    recordings: Sequence[Path],
    *,
    top_k: int = 10,
    threshold: float | None = None,
    show_progress: bool = True,
) -> Iterator[Heard]:
    """What `TermRetriever.search_batch` finds in each recording; given out after every 32 of them."""
    threshold = retriever.checked_threshold(threshold)
    for first in range(0, len(recordings), _FILES_AT_ONCE):
        group = recordings[first : first + _FILES_AT_ONCE]
        nearest = retriever.nearest_batch(group, top_k=top_k, show_progress=show_progress)
        for recording, found in zip(group, nearest, strict=True):
            matches = [match for match in found if match.reaches(threshold)]
            yield Heard(recording, matches, found[0] if found else None)


def hear_each_time(
    retriever: TermRetriever, recording: Path, *, top_k: int = 10, threshold: float | None = None
) -> Iterator[TermMatch]:
    """The terms of a recording each time they are said, in order, as soon as they are heard.

    Args:
        top_k: most terms in a second.
        threshold: lowest score; default the calibrated one.

    Raises:
        ValueError: no threshold.
        BadAudioError: naming the file; also at its end, where that shows to be too short.
    """

    def blocks() -> Iterator[np.ndarray]:
        num_samples, silent = 0, True
        for pcm, _ in pcm_blocks(recording, SAMPLING_RATE):
            num_samples += len(pcm)
            silent = silent and not pcm.any()
            yield pcm
        retriever.encoder.check_length(num_samples)
        if silent:
            logger.warning("%s is silent: no term is heard in it", recording)

    try:
        yield from retriever.stream(blocks(), threshold=threshold, top_k=top_k)
    except BadAudioError as error:
        raise BadAudioError(f"{recording}: {error}") from error
