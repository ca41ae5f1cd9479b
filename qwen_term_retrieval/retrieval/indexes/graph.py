"""An approximate first look: rows in a graph of neighbours, in which each window walks towards its nearest (usearch).

For banks of which even a byte a row and axis is too much to read for every clip. What the walks propose is scored in
float32 like everything else; what they pass by is not found. HNSW: Malkov and Yashunin 2016.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

INSTALL_HINT = 'pip install "qwen_term_retrieval[ann]"'
_FILE = "graph.usearch"
_NEIGHBOURS = 16
_LOOKED_AT_TO_ADD = 64
_BLOCK_ROWS = 65_536
_LEAST_PROPOSED = 40


def usearch_index() -> Any:
    """`usearch.index.Index`; raises ImportError with the remedy."""
    try:
        from usearch.index import Index
    except ImportError as error:
        raise ImportError(f"an approximate index takes usearch: {INSTALL_HINT}") from error
    return Index


class Graph:
    """Rows and their neighbours.

    Args:
        index: of `usearch`, filled, or mapped from a file.
    """

    def __init__(self, index: Any):
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    @classmethod
    def of(cls, vectors_ND: torch.Tensor) -> Graph:
        """Add all rows, in int8; vectors may be a memory map. A hundred thousand take a core some 20 s."""
        index = usearch_index()(
            ndim=vectors_ND.shape[1],
            metric="ip",
            dtype="i8",
            connectivity=_NEIGHBOURS,
            expansion_add=_LOOKED_AT_TO_ADD,
        )
        for first in range(0, len(vectors_ND), _BLOCK_ROWS):
            block_ND = np.ascontiguousarray(vectors_ND[first : first + _BLOCK_ROWS].float().numpy())
            index.add(np.arange(first, first + len(block_ND)), block_ND, threads=torch.get_num_threads())
        return cls(index)

    def rows_near(self, query_WD: torch.Tensor, top_k: int) -> torch.Tensor:
        """Rows that are near to any of the windows, int64, ascending."""
        wanted = min(len(self), max(_LEAST_PROPOSED, top_k))
        windows = np.ascontiguousarray(query_WD.numpy())
        found = self._index.search(windows, wanted, threads=torch.get_num_threads())
        # Of several windows, keys stand in a table whose rows may not be full.
        keys = [found.keys] if len(windows) == 1 else [row[:n] for row, n in zip(found.keys, found.counts, strict=True)]
        return torch.from_numpy(np.unique(np.concatenate(keys)).astype(np.int64))

    def save(self, folder: Path) -> None:
        self._index.save(str(folder / _FILE))

    @classmethod
    def open(cls, folder: Path) -> Graph:
        """Open what `save` wrote, by memory map.

        Raises:
            ImportError: usearch is not installed. ValueError: the file is none of its.
        """
        index = usearch_index().restore(str(folder / _FILE), view=True)
        if index is None:
            raise ValueError(f"{folder / _FILE} is no graph")
        return cls(index)


def has_graph(folder: Path) -> bool:
    return (folder / _FILE).is_file()
