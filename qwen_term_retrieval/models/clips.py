"""Whatever a user calls a clip, as int16 samples at 16 kHz; and many of them in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

from qwen_term_retrieval.models.mel import SAMPLING_RATE

# Resampling overshoots a little; beyond this, floats are on another scale.
_MAX_OVERSHOOT = 1.5


def to_pcm(clip: Any, name: str = "clip") -> np.ndarray:
    """int16 samples (num_samples,) of a clip at 16 kHz.

    Args:
        clip: an int16 array, a float array in [-1, 1), a tensor of either, an object with `.pcm` (a `Clip`), a mapping
            with `array` and `sampling_rate` (as `datasets` decodes audio), or the path of an audio file. Files may
            have any rate and channel count, mappings any rate; plain arrays must be mono, at 16 kHz.
        name: what an error calls it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no samples, more than one channel, NaN, another dtype or scale, or a file that cannot be read.
    """
    if isinstance(clip, str | Path):
        samples: Any = _at_16_khz(*_read(Path(clip)))
    elif hasattr(clip, "pcm"):
        samples = clip.pcm
    elif isinstance(clip, Mapping):
        samples = _at_16_khz(*_decoded(clip, name))
    else:
        samples = clip
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu().numpy()
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise ValueError(f"{name}: expected mono samples of shape (num_samples,), not {samples.shape}. Mix it down.")
    if len(samples) == 0:
        raise ValueError(f"{name}: holds no samples. Drop it.")
    if samples.dtype == np.int16:
        return samples
    if not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"{name}: samples are {samples.dtype}; give int16, or floats in [-1, 1)")
    peak = float(np.abs(samples).max())
    if not np.isfinite(peak):
        raise ValueError(f"{name}: holds NaN or infinite samples. Drop or repair it.")
    if peak > _MAX_OVERSHOOT:
        raise ValueError(f"{name}: floats reach {peak:.4g}, outside [-1, 1). Divide int16-scaled floats by 32768.")
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def _read(path: Path) -> tuple[np.ndarray, int]:
    if not path.is_file():
        raise FileNotFoundError(f"audio file {path} does not exist")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: cannot be read as audio: {error}") from error
    return samples.mean(axis=1), rate


def _decoded(clip: Mapping[str, Any], name: str) -> tuple[np.ndarray, int]:
    if "array" not in clip or "sampling_rate" not in clip:
        raise ValueError(f"{name}: a mapping needs the keys 'array' and 'sampling_rate'; it has {sorted(clip)}")
    return np.asarray(clip["array"]), clip["sampling_rate"]


def _at_16_khz(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate == SAMPLING_RATE or len(samples) == 0:
        return samples
    if samples.dtype == np.int16:
        samples = samples.astype(np.float32) / 32768
    return soxr.resample(samples, rate, SAMPLING_RATE, quality="HQ")


def pad_clips(clips: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """pcm_BS int16, zero behind each clip's end, and num_samples_B int64; on the CPU."""
    num_samples_B = torch.tensor([len(clip) for clip in clips], dtype=torch.int64)
    pcm_BS = np.zeros((len(clips), int(num_samples_B.max())), np.int16)
    for row, clip in zip(pcm_BS, clips, strict=True):
        row[: len(clip)] = clip
    return torch.from_numpy(pcm_BS), num_samples_B


def length_buckets(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, the longest first, so that too large a batch fails at once."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size].tolist()
