"""One part of an index: terms, their vectors, and what makes them quick to search. It never changes.

An index is a list of parts, as a log-structured store is: what is added becomes a part of its own, small ones are
joined, and what is removed is a mask beside the part.

Shapes: B queries, W windows, T terms, R rows (the ways that terms are said), K results, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_term_retrieval.retrieval.indexes.graph import Graph
from qwen_term_retrieval.retrieval.indexes.sketch import Sketch
from qwen_term_retrieval.retrieval.indexes.sounds import PartSounds
from qwen_term_retrieval.retrieval.indexes.terms import TermTable
from qwen_term_retrieval.retrieval.indexes.vectors_file import VectorsFile


@dataclass(frozen=True, eq=False)
class Part:
    """Terms and their vectors.

    Args:
        terms: said in R ways.
        vectors_RD: float32, in memory, on a GPU, or mapped from a file.
        file: where the vectors lie that are not to be in memory; its map is `vectors_RD`.
        sketch: where there are many rows, see `sketch.py`.
        graph: where the search is to be approximate, see `graph.py`.
        sounds: None where nobody asked how the terms sound.
        home: the folder that the part was written to, or opened from; its name is the part's.
    """

    terms: TermTable
    vectors_RD: torch.Tensor
    file: VectorsFile | None = None
    sketch: Sketch | None = None
    graph: Graph | None = None
    sounds: PartSounds | None = None
    home: Path | None = None

    def __len__(self) -> int:
        return len(self.terms)

    def vectors_of(self, rows_K: torch.Tensor) -> torch.Tensor:
        """The vectors (K, D) of some rows."""
        if self.file is not None:
            return self.file.rows(rows_K)
        return self.vectors_RD[rows_K.to(self.vectors_RD.device)]

    def rows_of_terms(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of these terms, and for each row which of the terms it is of."""
        firsts_T1 = self.terms.first_rows_T1
        firsts = firsts_T1[places].astype(np.int64)
        counts = firsts_T1[places + 1] - firsts
        rows = np.arange(counts.sum()) + (firsts - (counts.cumsum() - counts)).repeat(counts)
        return rows, np.arange(len(places)).repeat(counts)

    def to(self, device: torch.device, dtype: torch.dtype) -> Part:
        return replace(self, vectors_RD=self.vectors_RD.to(device, dtype), file=None)

    @staticmethod
    def join(parts: Sequence[Part], removed: Sequence[NDArray[np.bool_] | None]) -> Part:
        """One part of what is not removed of several, in memory, without a sketch."""
        kept = [None if mask is None else ~mask for mask in removed]
        vectors = [
            part.vectors_RD if mask is None else part.vectors_RD[torch.from_numpy(part.terms.rows_of(mask))]
            for part, mask in zip(parts, kept, strict=True)
        ]
        sounds = None
        if all(part.sounds is not None for part in parts):
            places, first = [], 0
            for part, mask in zip(parts, kept, strict=True):
                mask = np.ones(len(part), np.bool_) if mask is None else mask
                places.append(np.where(mask, mask.cumsum() - 1 + first, -1))
                first += int(mask.sum())
            sounds = PartSounds.join([part.sounds for part in parts if part.sounds is not None], places)
        terms = TermTable.join([part.terms for part in parts], kept)
        return Part(terms, torch.cat(vectors), sounds=sounds)
