"""One recording, whatever its format, rate and channels, to mono int16: `pcm_blocks` as a stream, `clip_pcm` whole.

Decoding is a stream, so a recording of an hour costs no more memory than one of a second. Samples of 16 bits at the
pack's rate pass through bit for bit. Everything else becomes float32, the mean of its channels, resampled by soxr at
high quality; what leaves [-1, 1] is clipped, and counted. NaN and infinity are refused: they have no right value.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from qwen_term_retrieval.audio.utterance import Audio

FRAMES_PER_BLOCK = 1 << 18
MAX_CHANNELS = 64
SAMPLING_RATE = 16_000
# A resampler overshoots here and there; a larger share of clipped samples means floats on another scale.
_CLIPPED_SHARE = 0.01


class BadAudioError(ValueError):
    """A recording that cannot be used as it is; the message says why, and the caller adds which one."""


def pcm_blocks(audio: Audio, rate: int, *, array_rate: int | None = None) -> Iterator[tuple[np.ndarray, int]]:
    """Yield `(pcm, num_clipped)`: int16 `(num_samples,)` mono at `rate` Hz, and how many samples were clipped.

    Args:
        audio: path, encoded bytes, or an array: int16 or float in [-1, 1], `(num_samples,)` or
            `(num_samples, channels)`.
        rate: sampling rate of the blocks, in Hz.
        array_rate: sampling rate of `audio`, in Hz; needed for arrays only.

    Raises:
        BadAudioError: no samples, NaN or infinity, unreadable or missing file, array of the wrong type or shape.
    """
    source_rate, blocks = _array_blocks(audio, array_rate) if isinstance(audio, np.ndarray) else _file_blocks(audio)
    num_samples = 0
    for block in _resample(blocks, source_rate, rate):
        num_samples += len(block)
        yield _to_int16(block)
    if num_samples == 0:
        raise BadAudioError("holds 0 samples")


def clip_pcm(clip: Any, array_rate: int | None = None, *, name: str = "the clip") -> np.ndarray:
    """Any kind of clip as int16 (num_samples,), 16 kHz, mono.

    Args:
        clip: path, encoded bytes, a `Clip`, a row with the column `audio`, a mapping with `array` and `sampling_rate`,
            (array, rate), or an array or tensor: int16, or floats in [-1, 1], (num_samples,) or with channels
            (num_samples, channels).
        array_rate: sampling rate of a bare array, in Hz.
        name: of the clip, for messages; a path names itself.

    Raises:
        BadAudioError: it cannot be heard; the message starts with `name`.
    """
    if isinstance(clip, Mapping) and "audio" in clip:
        clip = clip["audio"]
    if isinstance(clip, str | Path):
        name = str(clip)
    if isinstance(getattr(clip, "pcm", None), np.ndarray):
        clip, array_rate = clip.pcm, clip.sampling_rate
    elif isinstance(clip, Mapping) and "array" in clip:
        clip, array_rate = clip["array"], clip.get("sampling_rate", array_rate)
    if isinstance(clip, tuple) and len(clip) == 2:
        clip, array_rate = clip
    if hasattr(clip, "detach"):  # a tensor; this module does without torch
        clip = clip.detach().cpu().numpy()
    if not isinstance(clip, str | Path | bytes | np.ndarray):
        raise BadAudioError(f"{name}: expected a path, an array or a Clip, not {type(clip).__name__}")
    if isinstance(clip, np.ndarray) and clip.dtype == np.int16 and clip.ndim == 1 and array_rate == SAMPLING_RATE:
        if not len(clip):
            raise BadAudioError(f"{name}: holds 0 samples")
        return clip
    try:
        blocks, clipped = zip(*pcm_blocks(clip, SAMPLING_RATE, array_rate=array_rate), strict=True)
    except BadAudioError as error:
        raise BadAudioError(f"{name}: {error}") from error
    pcm = np.concatenate(blocks)
    if sum(clipped) > _CLIPPED_SHARE * len(pcm):
        raise BadAudioError(
            f"{name}: {sum(clipped)} of {len(pcm)} samples lie outside [-1, 1]. Scale the floats "
            "(those on the scale of int16 by 1/32768)."
        )
    return pcm


def _file_blocks(audio: str | Path | bytes) -> tuple[int, Iterator[np.ndarray]]:
    if isinstance(audio, bytes):
        source: str | io.BytesIO = io.BytesIO(audio)
    else:
        if not Path(audio).is_file():
            raise BadAudioError("the file does not exist")
        source = str(audio)
    try:
        file = soundfile.SoundFile(source)
    except (soundfile.LibsndfileError, TypeError) as error:
        # TypeError: soundfile asks for rate and channels when the suffix says headerless PCM (.raw).
        raise BadAudioError(f"soundfile cannot read it ({_reason(error)}); convert it to WAV, FLAC or Ogg") from error
    return file.samplerate, _decode(file)


def _decode(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    with file:
        try:
            while len(block := file.read(FRAMES_PER_BLOCK, dtype="float32", always_2d=True)):
                yield block
        except soundfile.LibsndfileError as error:
            raise BadAudioError(f"corrupt near sample {file.tell()} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return str(error).rpartition(": ")[2].strip().rstrip(".")


def _array_blocks(array: np.ndarray, rate: int | None) -> tuple[int, Iterator[np.ndarray]]:
    if rate is None:
        raise BadAudioError("an array without its sampling rate; give Utterance(sampling_rate=…)")
    if array.dtype != np.int16 and not np.issubdtype(array.dtype, np.floating):
        raise BadAudioError(f"an array of {array.dtype}; give int16, or floats in [-1, 1]")
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > MAX_CHANNELS):
        raise BadAudioError(f"an array of shape {array.shape}; give (num_samples,) or (num_samples, channels)")
    frames = array[:, None] if array.ndim == 1 else array
    scale = np.float32(1 / 32768) if array.dtype == np.int16 else np.float32(1)
    starts = range(0, len(frames), FRAMES_PER_BLOCK)
    return rate, (frames[start : start + FRAMES_PER_BLOCK].astype(np.float32) * scale for start in starts)


def _resample(blocks: Iterator[np.ndarray], source_rate: int, rate: int) -> Iterator[np.ndarray]:
    """Mono float32 blocks at `rate`; the stream gives the same samples as resampling the whole at once."""
    resampler = soxr.ResampleStream(source_rate, rate, 1, dtype="float32", quality="HQ")
    num_read = 0
    for block in blocks:
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise BadAudioError(f"sample {num_read + int(np.argmin(finite))} is NaN or infinite")
        num_read += len(block)
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
        yield mono if source_rate == rate else resampler.resample_chunk(mono)
    if source_rate != rate and num_read:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _to_int16(block: np.ndarray) -> tuple[np.ndarray, int]:
    scaled = np.rint(block * np.float32(32768))
    # Full scale itself, +1.0, is 32768 and saturates to 32767: a rounding, not a clipped sample.
    num_clipped = int(np.count_nonzero(np.abs(scaled) > 32768))
    return np.clip(scaled, -32768, 32767).astype("<i2"), num_clipped
