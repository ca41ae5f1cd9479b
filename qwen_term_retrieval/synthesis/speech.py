"""What a speech engine returns, and how it is made uniform: 16 kHz, int16, no long silence at the ends."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import soxr

SAMPLING_RATE = 16_000
_FRAME_S = 0.01
_SILENCE_DB = -45.0
_EDGE_S = 0.08
_PEAK = 0.7


@dataclass(frozen=True)
class Speech:
    """A rendered utterance.

    Attributes:
        pcm: float32 (num_samples,) in [-1, 1].
        sampling_rate: in Hz.
        start, end: seconds in which the term is spoken; None where the whole utterance is the term.
    """

    pcm: np.ndarray
    sampling_rate: int
    start: float | None = None
    end: float | None = None

    @property
    def duration(self) -> float:
        return len(self.pcm) / self.sampling_rate


def at_16_khz(speech: Speech) -> Speech:
    """Resample, cut the silence at both ends down to 80 ms, and bring the peak to 0.7; the term's times follow.

    Raises:
        ValueError: if nothing can be heard.
    """
    pcm = np.ascontiguousarray(speech.pcm, dtype=np.float32)
    if speech.sampling_rate != SAMPLING_RATE:
        pcm = soxr.resample(pcm, speech.sampling_rate, SAMPLING_RATE, quality="HQ")
    first, last = _audible_span(pcm)
    edge = round(_EDGE_S * SAMPLING_RATE)
    first, last = max(0, first - edge), min(len(pcm), last + edge)
    pcm = pcm[first:last]
    pcm = pcm * np.float32(_PEAK / np.abs(pcm).max())
    if speech.start is None or speech.end is None:
        return Speech(pcm, SAMPLING_RATE)
    shift, duration = first / SAMPLING_RATE, len(pcm) / SAMPLING_RATE
    start, end = (min(max(time - shift, 0.0), duration) for time in (speech.start, speech.end))
    return replace(speech, pcm=pcm, sampling_rate=SAMPLING_RATE, start=start, end=end)


def as_int16(pcm: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pcm * 32767.0), -32768, 32767).astype(np.int16)


def _audible_span(pcm: np.ndarray) -> tuple[int, int]:
    """First and one past the last sample of the 10 ms frames that are within 45 dB of the loudest."""
    frame = round(_FRAME_S * SAMPLING_RATE)
    num_frames = len(pcm) // frame
    energy = np.square(pcm[: num_frames * frame].reshape(num_frames, frame)).mean(axis=1) if num_frames else np.zeros(1)
    if not energy.max() > 0:
        raise ValueError(f"the engine returned {len(pcm)} samples of silence")
    audible = np.flatnonzero(energy > energy.max() * 10 ** (_SILENCE_DB / 10))
    return int(audible[0]) * frame, int(audible[-1] + 1) * frame
