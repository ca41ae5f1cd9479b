"""Long and live audio: overlapping chunks of which every window is scored once, and repeats merged.

`Chunker` cuts audio that arrives piece by piece. A chunk is what the audio tower hears at once; it *owns* the windows
that end in its newest part, and reaches back far enough that the longest of them lies within it with a margin of
context on both sides. The windows owned by all chunks together are exactly the windows of the recording as a whole,
and a term is scored at most a hop and a margin after it ended.

`RepeatMerger` makes one match of the many that one utterance of a term gives in neighbouring chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import soxr

from qwen_term_retrieval.audio.decoding import pcm_blocks
from qwen_term_retrieval.retrieval.matches import TermMatch


@dataclass(frozen=True)
class Chunk:
    """Audio to encode at once. Frames count from the start of the recording.

    pcm: int16 (num_samples,), 16 kHz. first_frame: of the chunk. It owns the windows whose end, in frames, lies in
    (owned_from, owned_to].
    """

    pcm: np.ndarray
    first_frame: int
    owned_from: float
    owned_to: float


class Chunker:
    """Cuts one recording into chunks, however its samples arrive.

    Args:
        samples_per_frame: of the audio tower.
        longest_window: in frames.
        stride: of the window grid, in frames; chunks start on it.
        hop: frames between chunks, rounded up to the stride.
        margin: frames of context on both sides of every window, where the recording has them.
    """

    def __init__(self, *, samples_per_frame: int, longest_window: int, stride: int, hop: int, margin: int):
        if min(samples_per_frame, longest_window, stride, hop, margin) < 1:
            raise ValueError("samples_per_frame, longest_window, stride, hop and margin must be at least 1")
        self.samples_per_frame = samples_per_frame
        self.stride = stride
        self.hop = math.ceil(hop / stride) * stride
        self.margin = margin
        self._reach_back = longest_window + margin
        self._buffer = np.zeros(0, np.int16)
        self._buffer_frame = 0
        self._scored_to = 0

    def feed(self, pcm: np.ndarray) -> Iterator[Chunk]:
        """Take in samples, int16 (num_samples,); yield the chunks they complete."""
        self._buffer = np.concatenate([self._buffer, pcm])
        while self._buffered_to >= self._scored_to + self.hop + self.margin:
            end = self._scored_to + self.hop
            yield self._cut(end, samples_to=end + self.margin)

    def finish(self) -> Iterator[Chunk]:
        """The rest of the recording; nothing where no sample came."""
        if len(self._buffer):
            yield self._cut(math.inf, samples_to=None)
            self._buffer = np.zeros(0, np.int16)

    @property
    def _buffered_to(self) -> int:
        return self._buffer_frame + len(self._buffer) // self.samples_per_frame

    def _cut(self, owned_to: float, samples_to: int | None) -> Chunk:
        first = self._first_frame()
        low = (first - self._buffer_frame) * self.samples_per_frame
        high = None if samples_to is None else (samples_to - self._buffer_frame) * self.samples_per_frame
        chunk = Chunk(self._buffer[low:high], first, self._scored_to, owned_to)
        if samples_to is not None:
            self._scored_to += self.hop
            keep_from = self._first_frame()
            self._buffer = self._buffer[(keep_from - self._buffer_frame) * self.samples_per_frame :]
            self._buffer_frame = keep_from
        return chunk

    def _first_frame(self) -> int:
        return max(0, (self._scored_to - self._reach_back) // self.stride * self.stride)


class RepeatMerger:
    """One match for each time a term is said.

    Matches of a term whose spans overlap are one; the best-scored gives the span. A match is held until `hold` seconds
    after its end, in case a better one follows, and later repeats of it are dropped.
    """

    def __init__(self, hold: float = 0.5):
        self.hold = hold
        self._held: dict[int, TermMatch] = {}
        self._told: dict[int, TermMatch] = {}

    def add(self, matches: Iterable[TermMatch], heard_to: float) -> list[TermMatch]:
        """Take in the matches of a chunk, scored up to `heard_to` seconds; return what is settled, by start."""
        settled = []
        for match in sorted(matches, key=lambda match: match.start):
            told = self._told.get(match.term_id)
            if told is not None and told.overlaps(match):
                continue
            held = self._held.get(match.term_id)
            if held is not None and not held.overlaps(match):
                settled.append(held)
                self._told[match.term_id] = held
                held = None
            if held is None or match.confidence > held.confidence:
                self._held[match.term_id] = match
        ripe = [match for match in self._held.values() if match.end + self.hold <= heard_to]
        for match in ripe:
            self._told[match.term_id] = self._held.pop(match.term_id)
        return sorted(settled + ripe, key=lambda match: match.start)

    def finish(self) -> list[TermMatch]:
        """What is still held, by start."""
        rest = sorted(self._held.values(), key=lambda match: match.start)
        self._held.clear()
        return rest


def live_pcm(blocks: Iterable[np.ndarray], sampling_rate: int, rate: int) -> Iterator[np.ndarray]:
    """Blocks of a live source to mono int16 at `rate`, resampled as one signal.

    Args:
        blocks: int16, or floats in [-1, 1]; (num_samples,) or (num_samples, channels), of any length.
        sampling_rate: of the blocks, in Hz.
        rate: wanted, in Hz.

    Raises:
        BadAudioError: NaN, infinity, or an array of another type or shape.
    """
    resampler = soxr.ResampleStream(sampling_rate, rate, 1, dtype="int16", quality="HQ")
    for block in blocks:
        for pcm, _ in pcm_blocks(block, sampling_rate, array_rate=sampling_rate) if len(block) else ():
            yield pcm if sampling_rate == rate else resampler.resample_chunk(pcm)
    if sampling_rate != rate:
        yield resampler.resample_chunk(np.zeros(0, np.int16), last=True)
