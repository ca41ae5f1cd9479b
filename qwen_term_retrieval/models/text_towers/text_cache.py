"""Pooled vectors of texts, computed once where the text encoder is frozen.

A frozen encoder gives the same vector for a term in every step; only the head above it learns. The vectors are float32
in memory, 4 · N · H bytes in every process: 100,000 texts at 384 dimensions are 150 MB, at 3584 dimensions 1.4 GB.
Workers that are forked share them; spawned ones copy them.

Shapes: N terms, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class TextCache:
    """Vectors by text.

    Example:
        >>> cache = TextCache(["sepsis", "gout"], torch.eye(2))
        >>> cache.has(["gout"]), cache.get(["gout"])
        (True, tensor([[0., 1.]]))
    """

    def __init__(self, texts: Sequence[str], pooled_NH: torch.Tensor):
        if len(texts) != len(pooled_NH):
            raise ValueError(f"{len(texts)} texts, but {len(pooled_NH)} vectors")
        self._row_of = {text: row for row, text in enumerate(texts)}
        self._pooled_NH = pooled_NH

    def __len__(self) -> int:
        return len(self._row_of)

    def has(self, texts: Sequence[str]) -> bool:
        """Whether every one of the texts is here."""
        return all(text in self._row_of for text in texts)

    def get(self, texts: Sequence[str]) -> torch.Tensor:
        """Vectors (N, H), on the CPU; a text that is not here is a KeyError."""
        return self._pooled_NH[[self._row_of[text] for text in texts]]
