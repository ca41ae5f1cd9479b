"""One recording, whatever its format, rate and channels, to mono int16: `pcm_blocks` as a stream, `clip_pcm` whole.

Decoding is a stream, so a recording of an hour costs no more memory than one of a second. Mono samples of up to 16 bits
at the pack's rate pass through bit for bit, and never become floats. Everything else becomes float32, the mean of its
channels, resampled by soxr at high quality; what leaves [-1, 1] is clipped, and counted. NaN and infinity are refused:
they have no right value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from qwen_term_retrieval.audio.sound_files import MAX_CHANNELS, RATES, opened_sound, read_blocks
from qwen_term_retrieval.audio.sources import Audio, FileSlice
from qwen_term_retrieval.errors import BadAudioError

FRAMES_PER_BLOCK = 1 << 18
SAMPLING_RATE = 16_000
# Encodings that libsndfile decodes to 16 bits or fewer: as int16 and as float they are the same samples.
EXACT_IN_INT16 = frozenset(
    {"PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610", "ALAC_16", "DPCM_8", "DPCM_16"}
)
# A resampler overshoots here and there; a larger share of clipped samples means floats on another scale.
_CLIPPED_SHARE = 0.01


def pcm_blocks(
    audio: Audio, rate: int, *, array_rate: int | None = None, channel: int | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield `(pcm, num_clipped)`: int16 `(num_samples,)` mono at `rate` Hz, and how many samples were clipped.

    Args:
        audio: path, URL of any fsspec file system, slice of a file, encoded bytes, or an array: int16 or float in
            [-1, 1], `(num_samples,)` or `(num_samples, channels)`.
        rate: sampling rate of the blocks, in Hz.
        array_rate: sampling rate of `audio`, in Hz; needed for arrays only.
        channel: the one to take, from 0; None: the mean of all.

    Raises:
        BadAudioError: no samples, NaN or infinity, a file that is missing, unreadable, cut short or corrupt, or an
            array of the wrong type or shape.
    """
    if isinstance(audio, np.ndarray):
        blocks = _array_pcm(audio, array_rate, rate, channel)
    else:
        blocks = _file_pcm(audio, rate, channel)
    num_samples = 0
    for pcm, num_clipped in blocks:
        num_samples += len(pcm)
        yield pcm, num_clipped
    if num_samples == 0:
        raise BadAudioError("holds 0 samples")


def resampled_length(num_samples: int, source_rate: int, rate: int) -> int:
    """Samples that `pcm_blocks` makes of so many: halves go up, in double precision, as soxr (1.1) rounds."""
    return int(num_samples / (source_rate / rate) + 0.5)


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
    pcm = getattr(clip, "pcm", None)
    if isinstance(pcm, np.ndarray):
        clip, array_rate = pcm, clip.sampling_rate
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


def _file_pcm(
    audio: str | Path | FileSlice | bytes, rate: int, channel: int | None
) -> Iterator[tuple[np.ndarray, int]]:
    with opened_sound(audio) as file:
        is_mono = file.channels == 1 or channel is not None
        is_exact = is_mono and file.samplerate == rate and file.subtype in EXACT_IN_INT16
        blocks = read_blocks(file, "int16" if is_exact else "float32", FRAMES_PER_BLOCK)
        yield from _converted(_of_channel(blocks, file.channels, channel), file.samplerate, rate)


def _array_pcm(
    array: np.ndarray, array_rate: int | None, rate: int, channel: int | None
) -> Iterator[tuple[np.ndarray, int]]:
    if array_rate is None:
        raise BadAudioError("an array without its sampling rate; give Utterance(sampling_rate=…)")
    if not RATES[0] <= array_rate <= RATES[1]:
        raise BadAudioError(f"an array at {array_rate} Hz; rates are from {RATES[0]} to {RATES[1]} Hz")
    if array.dtype != np.int16 and not np.issubdtype(array.dtype, np.floating):
        raise BadAudioError(f"an array of {array.dtype}; give int16, or floats in [-1, 1]")
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > MAX_CHANNELS):
        raise BadAudioError(f"an array of shape {array.shape}; give (num_samples,) or (num_samples, channels)")
    frames = array[:, None] if array.ndim == 1 else array
    blocks = (frames[start : start + FRAMES_PER_BLOCK] for start in range(0, len(frames), FRAMES_PER_BLOCK))
    is_mono = frames.shape[1] == 1 or channel is not None
    if not (is_mono and array_rate == rate and array.dtype == np.int16):
        scale = np.float32(1 / 32768) if array.dtype == np.int16 else np.float32(1)
        blocks = (block.astype(np.float32) * scale for block in blocks)
    return _converted(_of_channel(blocks, frames.shape[1], channel), array_rate, rate)


def _of_channel(blocks: Iterator[np.ndarray], num_channels: int, channel: int | None) -> Iterator[np.ndarray]:
    if channel is None:
        return blocks
    if not 0 <= channel < num_channels:
        raise BadAudioError(f"has no channel {channel}, counted from 0, but {num_channels} in all")
    return (block[:, channel : channel + 1] for block in blocks)


def _converted(blocks: Iterator[np.ndarray], source_rate: int, rate: int) -> Iterator[tuple[np.ndarray, int]]:
    """Float32 (frames, channels) to int16 mono; the stream gives the same samples as converting the whole at once.

    Int16 (frames, 1), at `rate` already, stays as it is.
    """
    resampler = None if source_rate == rate else soxr.ResampleStream(source_rate, rate, 1, "float32", "HQ")
    num_read = 0
    for block in blocks:
        if block.dtype == np.int16:
            yield np.ascontiguousarray(block[:, 0], "<i2"), 0
            continue
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise BadAudioError(f"sample {num_read + int(np.argmin(finite))} is NaN or infinite")
        num_read += len(block)
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
        yield _to_int16(mono if resampler is None else resampler.resample_chunk(mono))
    if resampler is not None and num_read:
        yield _to_int16(resampler.resample_chunk(np.zeros(0, np.float32), last=True))


def _to_int16(block: np.ndarray) -> tuple[np.ndarray, int]:
    with np.errstate(over="ignore"):  # what overflows is infinite, and clipped like all that is too large
        scaled = np.rint(block * np.float32(32768))
    # Full scale itself, +1.0, is 32768 and saturates to 32767: a rounding, not a clipped sample.
    num_clipped = int(np.count_nonzero(np.abs(scaled) > 32768))
    return np.clip(scaled, -32768, 32767).astype("<i2"), num_clipped
