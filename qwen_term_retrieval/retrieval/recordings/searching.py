"""Recordings searched one after another: each where a term was heard best, or each time that it is said."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, Literal

import numpy as np

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE, clip_blocks, clip_pcm
from qwen_term_retrieval.errors import BadAudioError
from qwen_term_retrieval.retrieval.encoding import CHUNK_SECONDS
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.recordings.inputs import OnError, Opened, Skipped
from qwen_term_retrieval.retrieval.retriever import TermRetriever

logger = logging.getLogger(__name__)

# Each time that a term is said, or where it was heard best; "auto": each time, unless the recording is a clip.
Times = Literal["auto", "each", "best"]
# What is found in clips is given after so many, and so many share the work of the towers.
_CLIPS_AT_ONCE = 32
_CHUNKS_AT_ONCE = 8


@dataclass
class Heard:
    """What was heard in a recording.

    matches: of a clip, best first; of a recording in the order they were said, more of them while it is read.
    nearest: the nearest term, heard or not; None in silence, and where each time is told. seconds: its length, known
    when it is read.
    """

    recording: Opened
    threshold: float | None
    is_each_time: bool = False
    matches: list[TermMatch] = field(default_factory=list)
    nearest: TermMatch | None = None
    seconds: float | None = None


def search_recordings(
    retriever: TermRetriever,
    recordings: Sequence[Opened],
    *,
    top_k: int = 10,
    threshold: float | None = None,
    times: Times = "auto",
    on_error: OnError = "raise",
    skipped: Skipped | None = None,
    show_progress: bool = True,
) -> Iterator[tuple[Heard, list[TermMatch], bool]]:
    """Search recordings; yield (what was heard in one so far, what of it is new, whether it is at its end).

    Args:
        retriever: with a glossary.
        recordings: as `open_recordings` gives them.
        top_k: most terms of a clip, or of a second of a recording.
        threshold: lowest confidence; default the calibrated one.
        times: where "each" time is told. Without a threshold there are only best places.
        on_error: "skip" goes on with the next recording; what was told of the broken one stays told.
        skipped: counts them.
        show_progress: a bar over the chunks of clips.

    Raises:
        BadAudioError: naming the recording; also at its end, where that shows to be cut short.
        ValueError: each time, and no threshold.
    """
    threshold = retriever.checked_threshold(threshold)
    if times == "each" and threshold is None:
        raise ValueError("each time that a term is said takes a threshold: pass one, or `calibrate` the model")
    skipped = Skipped() if skipped is None else skipped

    def is_each_time(recording: Opened) -> bool:
        is_clip = recording.seconds is not None and recording.seconds <= CHUNK_SECONDS
        return times == "each" or (times == "auto" and threshold is not None and not is_clip)

    def is_short(recording: Opened) -> bool:
        return recording.seconds is not None and recording.seconds <= CHUNK_SECONDS and not is_each_time(recording)

    for short, group in groupby(recordings, is_short):
        if short:
            while some := list(islice(group, _CLIPS_AT_ONCE)):
                yield from _search_clips(retriever, some, top_k, threshold, on_error, skipped, show_progress)
        else:
            for recording in group:
                try:
                    if is_each_time(recording):
                        yield from _hear_each_time(retriever, recording, top_k, threshold)
                    else:
                        yield _search_long(retriever, recording, top_k, threshold, show_progress)
                except BadAudioError as error:
                    logger.warning("%s", skipped.take(error, on_error))


def _search_clips(
    retriever: TermRetriever,
    recordings: Sequence[Opened],
    top_k: int,
    threshold: float | None,
    on_error: OnError,
    skipped: Skipped,
    show_progress: bool,
) -> Iterator[tuple[Heard, list[TermMatch], bool]]:
    """Clips together, each of which is in memory; one that is broken does not stop the others."""
    whole: list[tuple[Opened, np.ndarray]] = []
    broken: BadAudioError | None = None
    for recording in recordings:
        try:
            pcm = clip_pcm(recording.recording)
            if len(pcm) < retriever.encoder.least_samples:
                raise BadAudioError(f"{recording.name}: {len(pcm)} samples are too short to hear a term in")
            whole.append((recording, pcm))
        except BadAudioError as error:
            if on_error == "raise":
                broken = error
                break
            logger.warning("%s", skipped.take(error, on_error))
    _warn_of_silence([recording for recording, pcm in whole if not pcm.any()])
    clips: list[Any] = [(pcm, SAMPLING_RATE) for _, pcm in whole if pcm.any()]
    found = iter(retriever.nearest_batch(clips, top_k=top_k, show_progress=show_progress))
    for recording, pcm in whole:
        nearest = next(found) if pcm.any() else []
        matches = [match for match in nearest if match.reaches(threshold)]
        heard = Heard(
            recording,
            threshold,
            matches=matches,
            nearest=next(iter(nearest), None),
            seconds=len(pcm) / SAMPLING_RATE,
        )
        yield heard, matches, True
    if broken is not None:
        raise broken


def _search_long(
    retriever: TermRetriever, recording: Opened, top_k: int, threshold: float | None, show_progress: bool
) -> tuple[Heard, list[TermMatch], bool]:
    ((*nearest,),) = retriever.nearest_batch([recording.recording], top_k=top_k, show_progress=show_progress)
    matches = [match for match in nearest if match.reaches(threshold)]
    first = next(iter(nearest), None)
    heard = Heard(recording, threshold, matches=matches, nearest=first, seconds=recording.seconds)
    return heard, matches, True


def _hear_each_time(
    retriever: TermRetriever, recording: Opened, top_k: int, threshold: float | None
) -> Iterator[tuple[Heard, list[TermMatch], bool]]:
    heard = Heard(recording, threshold, is_each_time=True)
    yield heard, [], False
    num_samples, silent = 0, True

    def blocks() -> Iterator[np.ndarray]:
        nonlocal num_samples, silent
        for pcm in clip_blocks(recording.recording):
            num_samples += len(pcm)
            silent = silent and not pcm.any()
            yield pcm

    for match in retriever.stream(blocks(), threshold=threshold, top_k=top_k, batch_size=_CHUNKS_AT_ONCE):
        heard.matches.append(match)
        yield heard, [match], False
    heard.seconds = num_samples / SAMPLING_RATE
    if num_samples < retriever.encoder.least_samples:
        raise BadAudioError(f"{recording.name}: {num_samples} samples are too short to hear a term in")
    if silent:
        _warn_of_silence([recording])
    yield heard, [], True


def _warn_of_silence(recordings: Sequence[Opened]) -> None:
    if recordings:
        names = ", ".join(recording.name for recording in recordings[:3]) + ("" if len(recordings) <= 3 else ", …")
        logger.warning("%d silent: %s: no term is heard in them", len(recordings), names)
