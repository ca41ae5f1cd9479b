"""Recordings that libsndfile does not read, by PyAV: what phones, browsers and meetings leave (m4a, mp4, webm, mkv …).

Times count on the container's own clock, as a player shows them and subtitles need them: an audio track that starts
late, or that has a hole, is filled with silence.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from qwen_term_retrieval.errors import BadAudioError

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

logger = logging.getLogger(__name__)

HINT = "pip install 'qwen_term_retrieval[av]' reads m4a, mp4, webm, mkv, wma and 3gp too"
# Of a recording in all.
_MOST_SILENCE_SECONDS = 24 * 3600
# Clocks in milliseconds put frames of 21.33 ms up to this far from where they belong.
_JITTER_SECONDS = 0.1
# Sample tables of MP4 say exactly how long a track is; other containers estimate.
_LEAST_SHARE, _EXACT_CONTAINER = 0.98, "mp4"
# Where libsndfile refuses what it knows, the file is broken, and a laxer decoder would make noise of it.
_OF_LIBSNDFILE = ("pcm", "flac", "vorbis", "opus", "mp3", "mp2", "gsm", "adpcm")
_CONTAINERS_OF_LIBSNDFILE = frozenset({"wav", "w64", "ogg", "flac", "mp3", "aiff", "au", "caf", "nistsphere"})


class Container:
    """One audio track of an open container: rate in Hz, channels, and its samples from front to back."""

    def __init__(self, container: InputContainer, stream: AudioStream):
        self._container, self._stream = container, stream
        self.samplerate: int = stream.rate
        self.channels: int = stream.channels

    @property
    def frames(self) -> int:
        """Samples a channel, about; 0 where the container does not say."""
        stream = self._stream
        if stream.duration is not None and stream.time_base is not None:
            return int(stream.duration * stream.time_base * self.samplerate)
        duration = self._container.duration
        return 0 if duration is None else int(duration / 1_000_000 * self.samplerate)

    def blocks(self, frames_per_block: int) -> Iterator[np.ndarray]:
        """Yield float32 (frames, channels) of about so many frames.

        Raises:
            BadAudioError: corrupt, or with far fewer samples than the container says.
        """
        held: list[np.ndarray] = []
        num_held = 0
        for frames in self._frames():
            held.append(frames)
            num_held += len(frames)
            if num_held >= frames_per_block:
                yield np.concatenate(held)
                held, num_held = [], 0
        if held:
            yield np.concatenate(held)

    def _frames(self) -> Iterator[np.ndarray]:
        import av

        stream, num_read, silent_seconds = self._stream, 0, 0.0
        begin = (self._container.start_time or 0) / 1_000_000
        # Floats of any layout as they are, in one plane: of more than eight PyAV reads beyond the last.
        to_floats = av.AudioResampler(format="flt", layout=stream.layout, rate=stream.rate)
        try:
            for decoded in self._container.decode(stream):
                if decoded.time is not None:
                    missing = max(0.0, decoded.time - begin - num_read / self.samplerate)
                    if missing > _JITTER_SECONDS or not num_read:
                        silent_seconds += missing
                        if silent_seconds > _MOST_SILENCE_SECONDS:
                            raise BadAudioError(f"corrupt: its clock leaps, last by {missing:.0f} s")
                        for silence in self._silence(missing):
                            num_read += len(silence)
                            yield silence
                for frame in to_floats.resample(decoded):
                    samples = frame.to_ndarray().reshape(-1, self.channels)
                    num_read += len(samples)
                    yield samples
        except (av.FFmpegError, ValueError) as error:
            raise BadAudioError(f"corrupt near sample {num_read} ({_reason(error)})") from error
        expected = self.frames if _EXACT_CONTAINER in self._container.format.name else 0
        if num_read < _LEAST_SHARE * expected - self.samplerate:
            raise BadAudioError(f"cut short: {num_read} of the {expected} samples that its header says")

    def _silence(self, seconds: float) -> Iterator[np.ndarray]:
        num_frames = round(seconds * self.samplerate)
        for first in range(0, num_frames, self.samplerate):
            yield np.zeros((min(self.samplerate, num_frames - first), self.channels), np.float32)


@contextmanager
def opened_container(source: bytes | BinaryIO, track: int | None, refused: BadAudioError) -> Iterator[Container]:
    """An audio track of a container that libsndfile refused.

    Args:
        source: name of a local file, or a stream.
        track: audio track, counted from 0; None: the one that the container calls its default.
        refused: what libsndfile said.

    Raises:
        BadAudioError: PyAV cannot read it either, or is not installed; no such track.
    """
    try:
        import av
    except ImportError as error:
        raise BadAudioError(f"{refused}. {HINT}") from error
    if isinstance(source, bytes):
        with Path(os.fsdecode(source)).open("rb") as file, _opened(av, file, track, refused) as container:
            yield container
    else:
        source.seek(0)
        with _opened(av, source, track, refused) as container:
            yield container


@contextmanager
def _opened(av: Any, file: BinaryIO, track: int | None, refused: BadAudioError) -> Iterator[Container]:
    try:
        # No protocol: a playlist that calls itself a recording opens nothing else.
        container = av.open(file, metadata_errors="replace", options={"protocol_whitelist": "none"})
    except (av.FFmpegError, ValueError) as error:
        raise BadAudioError(f"{refused}; nor can PyAV ({_reason(error)})") from error
    with container:
        yield Container(container, _track(container, track, refused))


def _track(container: InputContainer, track: int | None, refused: BadAudioError) -> AudioStream:
    # A broken one has streams without a decoder.
    tracks = [stream for stream in container.streams.audio if stream.codec_context is not None and stream.rate]
    if not tracks:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise BadAudioError(f"{refused}; PyAV finds no audio track in it, but {kinds}")
    if container.format.name in _CONTAINERS_OF_LIBSNDFILE and tracks[0].codec_context.name.startswith(_OF_LIBSNDFILE):
        raise refused
    names = ", ".join(f"{number} ({stream.language or 'no language'})" for number, stream in enumerate(tracks))
    if track is not None:
        if not 0 <= track < len(tracks):
            raise BadAudioError(f"has no audio track {track}, but {names}: give one of these")
        return tracks[track]
    best: Any = container.streams.best("audio")
    best = best if best in tracks else tracks[0]
    if len(tracks) > 1:
        logger.info("of the audio tracks %s, %d is heard; track=… takes another", names, tracks.index(best))
    return best


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".")
