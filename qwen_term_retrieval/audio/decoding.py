"""One recording, whatever its format, rate and channels, to mono int16.

`pcm_blocks` gives a recording as a stream; `clip_blocks` any kind of clip so, at 16 kHz, `clip_pcm` whole, and
`stretch_pcm` a part of it.

Decoding is a stream, so a recording of an hour costs no more memory than one of a second. Mono samples of up to 16 bits
at the pack's rate pass through bit for bit, and never become floats. Everything else becomes float32, the mean of its
channels, resampled by soxr at high quality; what leaves [-1, 1] is clipped, and counted. NaN and infinity are refused,
and channels that cancel out in their mean: they have no right value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soxr

from qwen_term_retrieval.audio.clip import AudioClip
from qwen_term_retrieval.audio.containers import Container
from qwen_term_retrieval.audio.sound_files import MAX_CHANNELS, RATES, EncodedAudio, opened_recording, read_blocks
from qwen_term_retrieval.audio.sources import Audio, Recording, name_of_audio
from qwen_term_retrieval.errors import BadAudioError

FRAMES_PER_BLOCK = 1 << 18
SAMPLING_RATE = 16_000
# Encodings that libsndfile decodes to 16 bits or fewer: as int16 and as float they are the same samples.
EXACT_IN_INT16 = frozenset(
    {"PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610", "ALAC_16", "DPCM_8", "DPCM_16"}
)
# A resampler overshoots here and there; a larger share of an array's samples means floats on another scale. Of a file
# far more is usual: what was mastered loud comes back from Vorbis, Opus or MP3 with peaks beyond full scale.
_CLIPPED_SHARE, _CLIPPED_SHARE_OF_FILE = 0.01, 0.25
# Energy of the mix of a whole recording over that of its channels. Two voices, left and right, leave a half; what is
# recorded in opposite phase by a wrong cable leaves its noise.
_CANCELLED_SHARE = 1e-3


def pcm_blocks(
    audio: Audio | BinaryIO,
    rate: int,
    *,
    array_rate: int | None = None,
    channel: int | None = None,
    track: int | None = None,
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield `(pcm, num_clipped)`: int16 `(num_samples,)` mono at `rate` Hz, and how many samples were clipped.

    Args:
        audio: path, URL of any fsspec file system, slice of a file, encoded bytes, a binary file (read from its
            beginning), or an array: int16 or float in [-1, 1], `(num_samples,)` or `(num_samples, channels)`.
        rate: sampling rate of the blocks, in Hz.
        array_rate: sampling rate of `audio`, in Hz; needed for arrays only.
        channel: the one to take, from 0; None: the mean of all.
        track: of a container with several audio tracks, from 0; None: its default.

    Raises:
        BadAudioError: no samples, NaN or infinity, channels that cancel out, a file that is missing, unreadable, cut
            short or corrupt, or an array of the wrong type or shape.
    """
    if isinstance(audio, np.ndarray):
        blocks = _array_pcm(audio, array_rate, rate, channel)
    else:
        blocks = _file_pcm(audio, rate, channel, track)
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
    """Any kind of clip as int16 (num_samples,), 16 kHz, mono; see `clip_blocks`."""
    blocks = list(clip_blocks(clip, array_rate, name=name))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def stretch_pcm(clip: Any, first: float, last: float, array_rate: int | None = None) -> np.ndarray:
    """The samples between two seconds of a clip or recording, fewer where it ends before; see `clip_blocks`.

    What follows on them is not read, and what lies before them is not kept.
    """
    begin, end, now = int(first * SAMPLING_RATE), round(last * SAMPLING_RATE), 0
    kept = [np.zeros(0, np.int16)]
    for block in clip_blocks(clip, array_rate):
        kept.append(block[max(0, begin - now) : max(0, end - now)])
        now += len(block)
        if now >= end:
            break
    return np.concatenate(kept)


def clip_blocks(clip: Any, array_rate: int | None = None, *, name: str = "the clip") -> Iterator[np.ndarray]:
    """Any kind of clip, block by block, as int16 (num_samples,), 16 kHz, mono; memory does not grow with its length.

    Args:
        clip: path, URL, encoded bytes, a binary file, a `Recording`, a `Clip`, a row with the column `audio`, a mapping
            with `array` and `sampling_rate` or with `path` or `bytes`, (array, rate) or (rate, array), or an array or
            tensor: int16, or floats in [-1, 1], (num_samples,) or with channels (num_samples, channels).
        array_rate: sampling rate of a bare array, in Hz.
        name: of the clip, for messages; a path names itself.

    Raises:
        BadAudioError: it cannot be heard; the message starts with `name`. What only the whole shows is raised at the
            end: too many clipped samples, channels that cancel out.
    """
    if isinstance(clip, Mapping) and "audio" in clip:
        clip = clip["audio"]
    name = name_of_audio(clip) or name
    try:
        yield from _blocks_of(clip, array_rate)
    except BadAudioError as error:
        raise BadAudioError(f"{name}: {error}") from error


def _blocks_of(clip: Any, array_rate: int | None) -> Iterator[np.ndarray]:
    channel = track = None
    if isinstance(clip, Recording):
        clip, channel, track = clip.audio, clip.channel, clip.track
    if isinstance(clip, AudioClip) and clip.sampling_rate == SAMPLING_RATE:
        yield from clip.blocks()
        return
    audio, array_rate = _opened_up(clip, array_rate)
    is_pcm = isinstance(audio, np.ndarray) and audio.dtype == np.int16 and audio.ndim == 1
    if isinstance(audio, np.ndarray) and is_pcm and array_rate == SAMPLING_RATE and not channel:
        if not len(audio):
            raise BadAudioError("holds 0 samples")
        yield audio
        return
    num_samples = num_clipped = 0
    for pcm, clipped in pcm_blocks(audio, SAMPLING_RATE, array_rate=array_rate, channel=channel, track=track):
        num_samples += len(pcm)
        num_clipped += clipped
        yield pcm
    allowed = _CLIPPED_SHARE if isinstance(audio, np.ndarray) else _CLIPPED_SHARE_OF_FILE
    if num_clipped > allowed * num_samples:
        raise BadAudioError(
            f"{num_clipped} of {num_samples} samples lie outside [-1, 1]. Scale the floats "
            "(those on the scale of int16 by 1/32768)."
        )


def _opened_up(clip: Any, array_rate: int | None) -> tuple[Any, int | None]:
    """What `pcm_blocks` takes, and the rate of an array."""
    if isinstance(clip, AudioClip):
        return clip.pcm, clip.sampling_rate
    if isinstance(clip, Mapping):
        if clip.get("array") is not None:
            clip, array_rate = clip["array"], clip.get("sampling_rate", array_rate)
        elif clip.get("bytes") is not None or clip.get("path") is not None:
            clip = clip["path"] if clip.get("bytes") is None else clip["bytes"]
        else:
            raise BadAudioError(
                f"a row without audio: it has {', '.join(map(str, clip)) or 'nothing'}. Give its audio, or "
                "`.rename_column(…, 'audio')` the column that holds it"
            )
    if isinstance(clip, tuple) and len(clip) == 2:
        clip, array_rate = clip[::-1] if isinstance(clip[0], int | np.integer) else clip  # Gradio puts the rate first
    if hasattr(clip, "detach") and hasattr(clip, "cpu"):  # a tensor; this module does without torch
        clip = clip.detach().cpu()
        if str(clip.dtype) == "torch.bfloat16":  # numpy (2.4) has no such type
            clip = clip.float()
        clip = clip.numpy()
    if not isinstance(clip, str | Path | bytes | np.ndarray) and not hasattr(clip, "read"):
        raise BadAudioError(
            f"expected a path, an array or a Clip, not {type(clip).__name__}: or bytes, an open file, (array, rate), a "
            "tensor, a row with the column `audio`"
        )
    return clip, None if array_rate is None else int(array_rate)


def _file_pcm(
    audio: EncodedAudio, rate: int, channel: int | None, track: int | None
) -> Iterator[tuple[np.ndarray, int]]:
    with opened_recording(audio, track) as file:
        if isinstance(file, Container):
            blocks = file.blocks(max(1, FRAMES_PER_BLOCK // file.channels))
        else:
            is_mono = file.channels == 1 or channel is not None
            is_exact = is_mono and file.samplerate == rate and file.subtype in EXACT_IN_INT16
            blocks = read_blocks(file, "int16" if is_exact else "float32", FRAMES_PER_BLOCK)
        yield from _converted(_of_channel(blocks, file.channels, channel), file.samplerate, rate)


def _array_pcm(
    array: np.ndarray, array_rate: int | None, rate: int, channel: int | None
) -> Iterator[tuple[np.ndarray, int]]:
    if array_rate is None:
        raise BadAudioError("an array without its sampling rate; give sampling_rate=… or (array, rate)")
    if not RATES[0] <= array_rate <= RATES[1]:
        raise BadAudioError(f"an array at {array_rate} Hz; rates are from {RATES[0]} to {RATES[1]} Hz")
    if array.dtype != np.int16 and not np.issubdtype(array.dtype, np.floating):
        raise BadAudioError(f"an array of {array.dtype}; give int16, or floats in [-1, 1]")
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > MAX_CHANNELS):
        hint = ": its transpose" if array.ndim == 2 and array.shape[0] <= MAX_CHANNELS else ""
        raise BadAudioError(f"an array of shape {array.shape}; give (num_samples,) or (num_samples, channels){hint}")
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
    num_read, energy_of_mix, energy_of_channels = 0, 0.0, 0.0
    for block in blocks:
        if block.dtype == np.int16:
            yield np.ascontiguousarray(block[:, 0], "<i2"), 0
            continue
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise BadAudioError(f"sample {num_read + int(np.argmin(finite))} is NaN or infinite")
        num_read += len(block)
        mono = block[:, 0]
        if block.shape[1] > 1:
            mono = block.mean(axis=1, dtype=np.float32)
            energy_of_mix += float(np.vdot(mono, mono))
            energy_of_channels += float(np.vdot(block, block)) / block.shape[1]
        yield _to_int16(mono if resampler is None else resampler.resample_chunk(mono))
    if resampler is not None and num_read:
        yield _to_int16(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    if energy_of_mix < _CANCELLED_SHARE * energy_of_channels:
        raise BadAudioError(
            "its channels cancel out when they are mixed: they are of opposite phase. Take one of them: channel=0"
        )


def _to_int16(block: np.ndarray) -> tuple[np.ndarray, int]:
    with np.errstate(over="ignore"):  # what overflows is infinite, and clipped like all that is too large
        scaled = np.rint(block * np.float32(32768))
    # Full scale itself, +1.0, is 32768 and saturates to 32767: a rounding, not a clipped sample.
    num_clipped = int(np.count_nonzero(np.abs(scaled) > 32768))
    return np.clip(scaled, -32768, 32767).astype("<i2"), num_clipped
