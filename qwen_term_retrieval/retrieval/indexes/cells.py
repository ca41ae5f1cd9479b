"""An approximate first look: rows in cells around centroids, of which a window visits a few (FAISS, IVF with int8).

For banks of which even a byte a row and axis is too much to read for every clip. What the visited cells propose is
scored in float32 like everything else; what they do not hold is not found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

INSTALL_HINT = 'pip install "qwen_term_retrieval[ann]"'
_FILE = "cells.faiss"
_ROWS_PER_CENTROID = 256
_SAMPLES_PER_CENTROID = 40
_BLOCK_ROWS = 65_536
# Of the cells, so many are visited by a window.
_VISITED = 1 / 40
_PROPOSED = 4
_LEAST_PROPOSED = 40


def faiss_module() -> Any:
    """`faiss`; raises ImportError with the remedy."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(f"an approximate index takes FAISS: {INSTALL_HINT}") from error
    return faiss


class Cells:
    """Rows by the centroid that they are nearest to.

    Args:
        index: of `faiss`, trained and filled, or read from a file.
    """

    def __init__(self, index: Any):
        self._index = index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @classmethod
    def of(cls, vectors_ND: torch.Tensor) -> Cells:
        """Train centroids on a sample, and sort all rows into cells; vectors may be a memory map."""
        faiss = faiss_module()
        num_rows, dim = vectors_ND.shape
        num_cells = max(1, num_rows // _ROWS_PER_CENTROID)
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dim), dim, num_cells, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.niter = 8
        sample = vectors_ND[:: max(1, num_rows // (num_cells * _SAMPLES_PER_CENTROID))]
        index.train(np.ascontiguousarray(sample.float().numpy()))
        for first in range(0, num_rows, _BLOCK_ROWS):
            index.add(np.ascontiguousarray(vectors_ND[first : first + _BLOCK_ROWS].float().numpy()))
        return cls(index)

    def rows_near(self, query_WD: torch.Tensor, top_k: int) -> torch.Tensor:
        """Rows that are near to any of the windows, int64, ascending."""
        faiss = faiss_module()
        visited = max(1, round(self._index.nlist * _VISITED))
        parameters = faiss.SearchParametersIVF(nprobe=visited)
        wanted = max(_LEAST_PROPOSED, _PROPOSED * top_k)
        _, rows_WK = self._index.search(np.ascontiguousarray(query_WD.numpy()), wanted, params=parameters)
        rows = np.unique(rows_WK)
        return torch.from_numpy(rows[rows >= 0])

    def save(self, folder: Path) -> None:
        faiss_module().write_index(self._index, str(folder / _FILE))

    @classmethod
    def open(cls, folder: Path) -> Cells:
        """Open what `save` wrote, by memory map."""
        faiss = faiss_module()
        return cls(faiss.read_index(str(folder / _FILE), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY))


def has_cells(folder: Path) -> bool:
    return (folder / _FILE).is_file()
