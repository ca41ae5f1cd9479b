"""Clips to batches: int16 all the way to the device, where they become float32."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch

from qwen_term_retrieval.audio.clip import AudioClip

# References to a buffer that no batch uses: the list's, the loop's and that of `getrefcount` itself.
_UNUSED = 3


class PcmBuffers:
    """Memory for batches that is used again once nothing refers to the batch that was in it.

    Fresh memory costs a page fault every 4 KiB, more than copying the samples does. With CUDA the buffers are pinned,
    except in DataLoader workers. A copy to the device must be over when the batch is dropped (not `non_blocking`).
    """

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []

    def take(self, num_clips: int, num_samples: int) -> torch.Tensor:
        """int16 (num_clips, num_samples), with whatever was there before."""
        needed = num_clips * num_samples
        buffer = next((array for array in self._buffers if sys.getrefcount(array) == _UNUSED), None)
        if buffer is None or len(buffer) < needed:
            # Of those that are too small, one is given up for it.
            self._buffers = [array for array in self._buffers if array is not buffer]
            pin = torch.utils.data.get_worker_info() is None and torch.cuda.is_available()
            buffer = torch.empty(needed, dtype=torch.int16, pin_memory=pin).numpy()
            self._buffers.append(buffer)
        # Every view of the batch holds this storage, and the storage holds `buffer`: that is the reference counted.
        return torch.from_numpy(buffer)[:needed].view(num_clips, num_samples)

    def __reduce__(self):
        return PcmBuffers, ()


def pad_pcm(
    clips: Sequence[np.ndarray | AudioClip], *, buffers: PcmBuffers | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack clips of different lengths, zeros after each.

    Args:
        clips: int16 arrays `(num_samples,)`, or clips of a dataset.
        buffers: to build the batch in; fresh memory if left out.

    Returns:
        pcm_BS: int16 `(batch, longest)`; num_samples_B: int64 `(batch,)`.
    """
    if not clips:
        raise ValueError("a batch needs at least one clip")
    views = [clip.pcm if isinstance(clip, AudioClip) else clip for clip in clips]
    wrong = next((view for view in views if view.dtype != np.int16 or view.ndim != 1), None)
    if wrong is not None:
        raise TypeError(f"clips must be int16 (num_samples,), not {wrong.dtype} {wrong.shape}")
    return pad_windows([np.ascontiguousarray(view).data for view in views], buffers)


def pad_windows(windows: Sequence[memoryview], buffers: PcmBuffers | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """`pad_pcm` for contiguous memoryviews of int16.

    Assigning to a memoryview is memmove, at the speed of memory; numpy 2.4 copies int16 in a slower loop of its own.
    """
    lengths = [len(window) for window in windows]
    longest = max(lengths)
    shape = len(windows), longest
    pcm_BS = torch.empty(shape, dtype=torch.int16) if buffers is None else buffers.take(*shape)
    target = pcm_BS.numpy().reshape(-1).data
    zeros = np.zeros(longest - min(lengths), np.int16).data
    start = 0
    for window, length in zip(windows, lengths, strict=True):
        target[start : start + length] = window
        target[start + length : start + longest] = zeros[: longest - length]
        start += longest
    return pcm_BS, torch.tensor(lengths)
