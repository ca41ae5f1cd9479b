"""Which rows repeat an earlier one, exactly, in memory that does not grow with the rows but for a bit each.

128 bits of hash and a row number go into one of 256 files by the hash; rows that are alike share a file, and each file
is sorted alone. Ten million rows take 240 MB on disk for as long as it lasts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import xxhash

_NUM_FILES = 256
_ROW = np.dtype([("hash", "<u8", 2), ("row", "<u8")])


def text_hashes(texts: Iterable[Sequence[str]]) -> np.ndarray:
    """128-bit hashes of rows of texts: uint64 (N, 2). ("ab", "c") and ("a", "bc") differ."""
    digests = (xxhash.xxh3_128_digest("".join(f"{len(text)}:{text}" for text in row).encode()) for row in texts)
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def first_occurrences(batches: Iterable[np.ndarray], folder: Path) -> RowSet:
    """The rows that repeat no earlier one.

    Args:
        batches: hashes of consecutive rows, uint64 (N, 2) each.
        folder: for files that are gone when it returns.
    """
    paths = [folder / f"hashes-{number:03d}" for number in range(_NUM_FILES)]
    num_rows = 0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for hash_N2 in batches:
            rows_N = np.empty(len(hash_N2), _ROW)
            rows_N["hash"], rows_N["row"] = hash_N2, np.arange(num_rows, num_rows + len(hash_N2))
            file_N = hash_N2[:, 0] % _NUM_FILES
            order_N = np.argsort(file_N, kind="stable")
            numbers, starts = np.unique(file_N[order_N], return_index=True)
            for number, part in zip(numbers, np.split(rows_N[order_N], starts[1:]), strict=True):
                files[number].write(part.tobytes())
            num_rows += len(hash_N2)
    kept = RowSet(num_rows)
    for path in paths:
        kept.drop(_repeated(np.fromfile(path, _ROW)))
        path.unlink()
    return kept


def _repeated(rows_N: np.ndarray) -> np.ndarray:
    order_N = np.lexsort((rows_N["row"], rows_N["hash"][:, 1], rows_N["hash"][:, 0]))
    sorted_N = rows_N[order_N]
    same = (sorted_N["hash"][1:] == sorted_N["hash"][:-1]).all(axis=1)
    return sorted_N["row"][1:][same]


class RowSet:
    """Rows that are kept, a bit each; at first all."""

    def __init__(self, num_rows: int):
        self.num_rows = num_rows
        self.num_dropped = 0
        self._dropped = np.zeros(-(-num_rows // 8), np.uint8)

    def drop(self, rows: np.ndarray) -> None:
        np.bitwise_or.at(self._dropped, (rows >> 3).astype(np.int64), (1 << (rows & 7)).astype(np.uint8))
        self.num_dropped += len(rows)

    def has(self, row: int) -> bool:
        return not self._dropped[row >> 3] >> (row & 7) & 1
