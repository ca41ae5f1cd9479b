"""Clips to batches: int16 all the way to the device, where they become float32.

`clip_views` reads a column without decoding rows: `rows.with_format("arrow")[:64]["audio"]` costs one Arrow slice, and
each view is a window of a memory map. `pad_pcm` copies the views once, into a buffer that a loop may use again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from qwen_term_retrieval.audio.feature import Clip
from qwen_term_retrieval.audio.locations import shard_samples


def clip_views(column: pa.Array | pa.ChunkedArray) -> list[np.ndarray]:
    """int16 views `(num_samples,)` of the clips that a column in Arrow format refers to.

    Raises:
        MissingShardError: the pack is not where it was.
    """
    references = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if references.null_count:
        raise ValueError(f"{references.null_count} of {len(references)} rows have no audio; filter them out first")
    shards, offsets, lengths = (references.field(name).to_pylist() for name in ("shard", "offset", "length"))
    return [
        shard_samples(shard)[offset : offset + length]
        for shard, offset, length in zip(shards, offsets, lengths, strict=True)
    ]


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
    num_samples_B = torch.tensor([len(view) for view in views], dtype=torch.int64)
    longest = int(num_samples_B.max())
    num_needed = len(views) * longest
    if buffer is None or buffer.numel() < num_needed:
        buffer = torch.empty(num_needed, dtype=torch.int16)
    pcm_BS = buffer[:num_needed].view(len(views), longest)
    rows = pcm_BS.numpy()
    for row, view in zip(rows, views, strict=True):
        row[: len(view)] = view
        row[len(view) :] = 0
    return pcm_BS, num_samples_B


def length_buckets(lengths: Sequence[float] | np.ndarray, batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, the longest first, so that too large a batch fails at once."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size].tolist()
