"""The shards of a token pack as one memory-mapped stream of ids."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# Smaller maps may stay: they are read again and again.
_LARGE_MAP_BYTES = 64 << 20


def let_go_of(array: np.ndarray) -> None:
    """Take the pages of a large mapped array out of this process; they stay in the page cache, and are read as before.

    A read at random maps 64 KiB around it, so that in hours of training a process would come to hold the whole file:
    harmless, since the kernel takes such pages back, but counted in its memory by every tool that looks.
    """
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and len(base) >= _LARGE_MAP_BYTES:
        base.madvise(mmap.MADV_DONTNEED)


@dataclass
class TokenStream:
    """Token ids of several files of equal size, end to end; each file is mapped when first read.

    `shard_tokens` is the number of ids in every file but the last, `data_offset` the byte where they start. Pickled,
    it is the paths.
    """

    paths: Sequence[Path]
    dtype: np.dtype
    num_tokens: int
    shard_tokens: int
    data_offset: int
    _shards: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def rows(self, starts_B: np.ndarray, width: int) -> np.ndarray:
        """Copies of the ids from each start on: (B, width). Zeros where a row runs past the end of the stream."""
        shard_B, local_B = np.divmod(starts_B, self.shard_tokens)
        first = int(shard_B[0]) if len(shard_B) else 0
        ids = self._shard(first)
        if width <= len(ids) and (shard_B == first).all() and (local_B <= len(ids) - width).all():
            # Every run of `width` ids as a row of one strided view: numpy copies the rows chosen, one by one.
            view_LW = np.ndarray((len(ids) - width + 1, width), ids.dtype, ids, strides=2 * ids.strides)
            return view_LW[local_B]
        rows_BW = np.zeros((len(starts_B), width), self.dtype)
        for row_W, start in zip(rows_BW, starts_B.tolist(), strict=True):
            self._read_into(row_W, start)
        return rows_BW

    def read(self, start: int, stop: int) -> np.ndarray:
        """A copy of the ids from `start` to `stop`: (stop - start,)."""
        ids = np.zeros(stop - start, self.dtype)
        self._read_into(ids, start)
        return ids

    def let_go(self) -> None:
        """Let go of the pages read so far; see `let_go_of`."""
        for ids in self._shards.values():
            let_go_of(ids)

    def _read_into(self, target: np.ndarray, start: int) -> None:
        filled, stop = 0, min(start + len(target), self.num_tokens)
        while start + filled < stop:
            shard, local = divmod(start + filled, self.shard_tokens)
            piece = self._shard(shard)[local : local + stop - start - filled]
            target[filled : filled + len(piece)] = piece
            filled += len(piece)

    def _shard(self, number: int) -> np.ndarray:
        ids = self._shards.get(number)
        if ids is None:
            # A plain array over the map: slices of np.memmap cost a microsecond more each.
            ids = np.memmap(self.paths[number], self.dtype, "r", offset=self.data_offset).view(np.ndarray)
            self._shards[number] = ids
        return ids

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_shards": {}}
