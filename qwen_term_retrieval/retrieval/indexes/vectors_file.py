"""Vectors that stay on the disk: a search reads the few rows that it scores, and keeps none of them.

Of a memory map, each row that is touched brings the pages around it into the process, until all of the file is there.

Shapes: R rows, K some of them, D embedding.
"""

from __future__ import annotations

import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

_BLOCK_ROWS = 1 << 16


class VectorsFile:
    """float32 rows in a file that is kept open, so that they outlive its name.

    Args:
        file: open for reading.
        first_byte: where the rows begin.
        shape: R and D.
    """

    def __init__(self, file: BinaryIO, first_byte: int, shape: tuple[int, int]):
        self._file, self._first_byte, self._shape = file, first_byte, shape

    @classmethod
    def open(cls, path: Path) -> VectorsFile:
        """Those of a `.npy` file.

        Raises:
            OSError, ValueError: it is missing, or is none of ours.
        """
        file = path.open("rb")
        np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        if len(shape) != 2 or fortran_order or dtype != np.float32:
            raise ValueError(f"{path}: no rows of float32")
        return cls(file, file.tell(), shape)

    @classmethod
    def written(cls, vectors_RD: torch.Tensor) -> VectorsFile:
        """These, in a file without a name."""
        # Closed with the object.
        file = tempfile.TemporaryFile(prefix="term_index.")  # noqa: SIM115
        for block_RD in vectors_RD.split(_BLOCK_ROWS):
            file.write(np.ascontiguousarray(block_RD.numpy()).data)
        file.flush()
        num_rows, dim = vectors_RD.shape
        return cls(file, 0, (num_rows, dim))

    @cached_property
    def mapped(self) -> torch.Tensor:
        """All of them, float32 (R, D), as a memory map: for who reads them one after another."""
        # Copy-on-write: torch wants writable memory, and nothing may reach the file.
        return torch.from_numpy(np.memmap(self._file, np.float32, "c", self._first_byte, self._shape))

    def rows(self, numbers_K: torch.Tensor) -> torch.Tensor:
        """Some of them, float32 (K, D)."""
        vectors_KD = np.empty((len(numbers_K), self._shape[1]), np.float32)
        descriptor, width = self._file.fileno(), vectors_KD.itemsize * self._shape[1]
        for into_D, number in zip(vectors_KD, numbers_K.tolist(), strict=True):
            if os.preadv(descriptor, [into_D.data], self._first_byte + number * width) != width:
                raise OSError(f"the file of an index's vectors ends before row {number:,}. Index again.")
        return torch.from_numpy(vectors_KD)
