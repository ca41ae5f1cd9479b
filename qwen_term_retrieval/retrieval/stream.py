"""Long and live audio: overlapping chunks of which every window is scored once, and repeats merged.

`Chunker` cuts audio that arrives piece by piece. A chunk is what the audio tower hears at once; it *owns* the windows
that end in its newest part, and reaches back far enough that the longest of them lies within it with a margin of
context on both sides. The windows owned by all chunks together are exactly the windows of the recording as a whole,
and a term is scored at most a hop and a margin after it ended. Where chunks lie depends on the recording alone, so a
search of a file and a stream of the same samples hear every window in the same surroundings.

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

# Longer than any window reaches back.
_REMEMBERED_SECONDS = 30.0


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
    """Cuts one recording into chunks, the same however its samples arrive.

    Args:
        samples_per_frame: of the audio tower.
        longest_window: in frames.
        stride: of the window grid, in frames; chunks start on it.
        hop: frames between chunks, rounded up to the stride.
        margin: frames of context on both sides of every window, where the recording has them.
        first_hop: frames that the first chunk owns, rounded down to the stride; default as `hop`. What is no longer
            than it and its margin is one chunk.
    """

    def __init__(
        self,
        *,
        samples_per_frame: int,
        longest_window: int,
        stride: int,
        hop: int,
        margin: int,
        first_hop: int | None = None,
    ):
        if min(samples_per_frame, longest_window, stride, hop, margin) < 1:
            raise ValueError("samples_per_frame, longest_window, stride, hop and margin must be at least 1")
        self.samples_per_frame = samples_per_frame
        self.stride = stride
        self.hop = math.ceil(hop / stride) * stride
        self.margin = margin
        self._owned_next = self.hop if first_hop is None else max(self.hop, first_hop // stride * stride)
        self._reach_back = longest_window + margin
        self._pieces: list[np.ndarray] = []
        self._num_buffered = 0
        self._buffer_frame = 0
        self._scored_to = 0

    def feed(self, pcm: np.ndarray) -> Iterator[Chunk]:
        """Take in samples, int16 (num_samples,); yield the chunks they complete: those behind which more follows."""
        while len(pcm):
            # By chunks, so that a whole recording that is fed at once is not copied for each of them.
            size = max(self._missing, 1)
            self._pieces.append(pcm[:size])
            self._num_buffered += len(self._pieces[-1])
            pcm = pcm[size:]
            if self._missing <= 0:
                yield self._cut(self._scored_to + self._owned_next)

    def finish(self) -> Iterator[Chunk]:
        """The rest of the recording; nothing where no sample came."""
        if self._num_buffered:
            yield self._cut(math.inf)

    @property
    def _missing(self) -> int:
        """Samples until the next chunk is cut: one more than it has."""
        ends = (self._scored_to + self._owned_next + self.margin - self._buffer_frame) * self.samples_per_frame
        return ends + 1 - self._num_buffered

    def _cut(self, owned_to: float) -> Chunk:
        buffer = self._pieces[0] if len(self._pieces) == 1 else np.concatenate(self._pieces)
        first = self._first_frame()
        low = (first - self._buffer_frame) * self.samples_per_frame
        if math.isinf(owned_to):
            self._pieces, self._num_buffered = [], 0
            return Chunk(buffer[low:], first, self._scored_to, owned_to)
        samples_to = int(owned_to) + self.margin
        high = (samples_to - self._buffer_frame) * self.samples_per_frame
        chunk = Chunk(buffer[low:high], first, self._scored_to, owned_to)
        self._scored_to, self._owned_next = int(owned_to), self.hop
        keep_from = self._first_frame()
        rest = buffer[(keep_from - self._buffer_frame) * self.samples_per_frame :]
        self._pieces, self._num_buffered, self._buffer_frame = [rest], len(rest), keep_from
        return chunk

    def _first_frame(self) -> int:
        return max(0, (self._scored_to - self._reach_back) // self.stride * self.stride)


class RepeatMerger:
    """One match for each time a term is said.

    Matches of a term whose spans overlap are one; the best-scored gives the span. A match is held until `hold` seconds
    after its end, in case a better one follows, and later repeats of it are dropped. With a `hold` as long as the
    longest window nothing that overlaps a match can follow it: each term is then told with its best score.
    """

    def __init__(self, hold: float = 0.5):
        self.hold = hold
        self._held: dict[int, list[TermMatch]] = {}
        self._told: dict[int, list[TermMatch]] = {}

    def add(self, matches: Iterable[TermMatch], heard_to: float) -> list[TermMatch]:
        """Take in the matches of a chunk, scored up to `heard_to` seconds; return what is settled, by start."""
        for match in matches:
            self._held.setdefault(match.term_id, []).append(match)
        settled = []
        for term_id in [*self._held]:
            best = self._best(term_id)
            ripe = [match for match in best if match.end + self.hold <= heard_to]
            settled += ripe
            self._told.setdefault(term_id, []).extend(ripe)
            rest = [match for match in self._held[term_id] if match.end + self.hold > heard_to]
            if rest:
                self._held[term_id] = rest
            else:
                del self._held[term_id]
        self._forget(heard_to - _REMEMBERED_SECONDS)
        return sorted(settled, key=lambda match: match.start)

    def finish(self) -> list[TermMatch]:
        """What is still held, by start."""
        rest = [match for term_id in self._held for match in self._best(term_id)]
        self._held.clear()
        return sorted(rest, key=lambda match: match.start)

    def _best(self, term_id: int) -> list[TermMatch]:
        """Of what is held of a term, those that neither overlap a better one nor one that was told."""
        kept: list[TermMatch] = []
        told = self._told.get(term_id, [])
        for match in sorted(self._held[term_id], key=lambda match: (-match.confidence, match.start)):
            if not any(match.overlaps(other) for other in (*told, *kept)):
                kept.append(match)
        return kept

    def _forget(self, before: float) -> None:
        for term_id in [*self._told]:
            self._told[term_id] = [match for match in self._told[term_id] if match.end > before]
            if not self._told[term_id]:
                del self._told[term_id]


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
