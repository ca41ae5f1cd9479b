"""Clips that are segments of long recordings: each recording is decoded once, and its segments are cut from the PCM.

A run of consecutive utterances that cut the same recording goes through one scratch file of PCM at the target rate.
Segments come in any order and may overlap; what they hold is bit for bit a slice of the whole recording resampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from qwen_term_retrieval.audio.decoding import FRAMES_PER_BLOCK, pcm_blocks
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.errors import BadAudioError
from qwen_term_retrieval.packs.format.shards import DTYPE, SAMPLE_BYTES

# Manifests round their times; an end that lies this far past the last sample means the last sample.
SEGMENT_SLACK_S = 0.05
Blocks = Iterator[tuple[np.ndarray, int]]


def recordings(utterances: Iterable[Utterance]) -> Iterator[list[Utterance]]:
    """Runs of consecutive utterances that cut the same recording; each clip that is a whole recording stands alone."""
    run: list[Utterance] = []
    for utterance in utterances:
        if run and not _cut_the_same(run[-1], utterance):
            yield run
            run = []
        run.append(utterance)
    if run:
        yield run


def clips(run: list[Utterance], rate: int, scratch: Path) -> Iterator[tuple[Utterance, Blocks]]:
    """Each utterance of a run of `recordings` with its `(pcm int16 (num_samples,), num_clipped)` blocks at `rate` Hz.

    Samples of a recording that were out of range are counted once, with its first segment.

    Raises:
        BadAudioError: from the blocks, where a recording is bad or does not reach as far as a segment says.
    """
    if not _is_segment(run[0]):
        for utterance in run:
            yield utterance, _blocks(utterance, rate)
        return
    try:
        recording = _Recording(run, rate, scratch)
        for number, utterance in enumerate(run):
            yield utterance, recording.cut(utterance, count_clipped=number == 0)
    finally:
        scratch.unlink(missing_ok=True)


def _blocks(utterance: Utterance, rate: int) -> Blocks:
    return pcm_blocks(utterance.audio, rate, array_rate=utterance.sampling_rate, channel=utterance.channel)


def _is_segment(utterance: Utterance) -> bool:
    return utterance.start != 0.0 or utterance.end is not None


def _cut_the_same(first: Utterance, second: Utterance) -> bool:
    if not (_is_segment(first) and _is_segment(second)):
        return False
    if (first.sampling_rate, first.channel) != (second.sampling_rate, second.channel):
        return False
    if isinstance(first.audio, np.ndarray | bytes) or isinstance(second.audio, np.ndarray | bytes):
        return first.audio is second.audio
    return first.audio == second.audio


class _Recording:
    """The PCM of a recording in a scratch file, as far as its segments reach and it can be decoded."""

    def __init__(self, run: list[Utterance], rate: int, scratch: Path) -> None:
        self._scratch = scratch
        self._rate = rate
        self._num_samples = 0
        self._num_clipped = 0
        self._error: BadAudioError | None = None
        needed = max(math.inf if segment.end is None else segment.end * rate for segment in run)
        with scratch.open("wb") as file:
            try:
                for pcm, num_clipped in _blocks(run[0], rate):
                    file.write(pcm.data)
                    self._num_samples += len(pcm)
                    self._num_clipped += num_clipped
                    if self._num_samples >= needed:
                        break
            except BadAudioError as error:
                self._error = error

    def cut(self, segment: Utterance, *, count_clipped: bool) -> Blocks:
        reaches_past = segment.end is None or round(segment.end * self._rate) > self._num_samples
        if self._error is not None and reaches_past:
            raise self._error
        first, last = segment_bounds(segment, self._num_samples, self._rate)
        num_clipped = self._num_clipped if count_clipped else 0
        while first < last:
            count = min(last - first, FRAMES_PER_BLOCK)
            yield np.fromfile(self._scratch, DTYPE, count, offset=first * SAMPLE_BYTES), num_clipped
            first, num_clipped = first + count, 0


def segment_bounds(segment: Utterance, num_samples: int, rate: int) -> tuple[int, int]:
    """First sample of a segment, and the one after its last, in a recording of `num_samples` at `rate` Hz.

    Raises:
        BadAudioError: it does not fit into the recording, or holds no sample.
    """
    first = round(segment.start * rate)
    last = num_samples if segment.end is None else round(segment.end * rate)
    end = f"{segment.end:g} s" if segment.end is not None else "its end"
    if last > num_samples + SEGMENT_SLACK_S * rate or first >= num_samples:
        raise BadAudioError(
            f"a segment from {segment.start:g} s to {end} does not fit into a recording of {num_samples / rate:.2f} s"
        )
    last = min(last, num_samples)
    if not 0 <= first < last:
        raise BadAudioError(f"a segment from {segment.start:g} s to {end} holds no sample")
    return first, last
