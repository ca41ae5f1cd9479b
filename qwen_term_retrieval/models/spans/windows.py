"""The grid of windows that a clip is searched with: every size at every stride, and the whole of a short clip.

Shapes: B clips, P windows of all clips; positions in encoder frames.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from qwen_term_retrieval.models.embeddings import Spans


def window_grid(num_frames_B: Sequence[int] | torch.Tensor, sizes: Sequence[int] | None, stride: int | None) -> Spans:
    """Windows of every clip, clip by clip, by size and then start.

    Each size that fits into a clip is laid at 0, stride, 2 · stride …, and once more at the clip's end where the
    stride does not reach it. A clip no longer than the largest size also gets one window over all of it; with
    `sizes=None` that window is the only one.

    Returns:
        Edges float32, on the CPU.

    >>> _, start, end = window_grid([5], sizes=(4,), stride=2)
    >>> start.tolist(), end.tolist()
    ([0.0, 1.0], [4.0, 5.0])
    """
    distinct = tuple(sorted(set(sizes or ())))
    rows = [_clip_windows(int(num_frames), distinct, stride) for num_frames in num_frames_B]
    counts = torch.tensor([len(windows) for windows in rows], dtype=torch.int64)
    clip_index_P = torch.repeat_interleave(torch.arange(len(rows)), counts)
    windows_P2 = np.concatenate(rows) if rows else np.zeros((0, 2), np.float32)
    return Spans(clip_index_P, *(torch.from_numpy(edges_P.copy()) for edges_P in windows_P2.T))


@functools.lru_cache(maxsize=4096)
def _clip_windows(num_frames: int, sizes: tuple[int, ...], stride: int | None) -> np.ndarray:
    if not sizes or not stride:
        return np.array([[0, num_frames]], np.float32)
    windows = []
    for size in sizes:
        if size <= num_frames:
            starts = np.union1d(np.arange(0, num_frames - size + 1, stride), [num_frames - size])
            windows.append(np.stack([starts, starts + size], axis=1))
    if num_frames <= max(sizes) and num_frames not in sizes:
        windows.append(np.array([[0, num_frames]]))
    return np.concatenate(windows).astype(np.float32)
