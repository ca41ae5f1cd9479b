"""Clips to batches: int16 all the way to the device, where they become float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from qwen_term_retrieval.audio.feature import Clip


def pad_pcm(
    clips: Sequence[np.ndarray | Clip], *, buffer: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack clips of different lengths, zeros after each.

    Args:
        clips: int16 arrays `(num_samples,)`, or `Clip`s.
        buffer: flat int16 tensor to build the batch in, if it is large enough. It saves the page faults of fresh
            memory; the batch is valid until the buffer is used again.

    Returns:
        pcm_BS: int16 `(batch, longest)`; num_samples_B: int64 `(batch,)`.
    """
    if not clips:
        raise ValueError("a batch needs at least one clip")
    views = [clip.pcm if isinstance(clip, Clip) else clip for clip in clips]
    wrong = next((view for view in views if view.dtype != np.int16 or view.ndim != 1), None)
    if wrong is not None:
        raise TypeError(f"clips must be int16 (num_samples,), not {wrong.dtype} {wrong.shape}")
    return pad_windows([memoryview(view) for view in views], buffer)


def pad_windows(windows: Sequence[memoryview], buffer: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """`pad_pcm` for contiguous memoryviews of int16.

    Assigning to a memoryview is memmove, at the speed of memory; numpy 2.4 copies int16 in a slower loop of its own.
    """
    lengths = [len(window) for window in windows]
    longest = max(lengths)
    if buffer is None or buffer.numel() < len(windows) * longest:
        buffer = torch.empty(len(windows) * longest, dtype=torch.int16)
    pcm_BS = buffer[: len(windows) * longest].view(len(windows), longest)
    target = memoryview(pcm_BS.numpy().reshape(-1))
    zeros = memoryview(np.zeros(longest - min(lengths), np.int16))
    start = 0
    for window, length in zip(windows, lengths, strict=True):
        target[start : start + length] = window
        target[start + length : start + longest] = zeros[: longest - length]
        start += longest
    return pcm_BS, torch.tensor(lengths)


def length_buckets(lengths: Sequence[float] | np.ndarray, batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, the longest first, so that too large a batch fails at once."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size].tolist()
