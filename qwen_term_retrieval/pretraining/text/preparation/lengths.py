"""Lengths of texts, counted one by one up to a limit, so that every quantile is known from a fixed table."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_COUNTED = 1 << 16


class Lengths:
    """How many texts have each length; those above 65,535 are counted together, at that length.

    >>> lengths = Lengths()
    >>> lengths.add([3, 5, 4, 100])
    >>> lengths.summary()["median"], lengths.summary()["max"]
    (4, 100)
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_COUNTED, np.int64)
        self._sum = 0
        self._max = 0

    def add(self, lengths: Iterable[int]) -> None:
        lengths_N = np.fromiter(lengths, np.int64)
        if len(lengths_N):
            self._counts += np.bincount(np.minimum(lengths_N, _COUNTED - 1), minlength=_COUNTED)
            self._sum += int(lengths_N.sum())
            self._max = max(self._max, int(lengths_N.max()))

    @property
    def num_texts(self) -> int:
        return int(self._counts.sum())

    def quantile(self, share: float) -> int:
        """The smallest length that this share of the texts does not exceed."""
        return int(np.searchsorted(np.cumsum(self._counts), share * self.num_texts))

    def summary(self) -> dict[str, float]:
        if not self.num_texts:
            return {}
        quantiles = {"median": 0.5, "p90": 0.9, "p99": 0.99}
        least = int(np.flatnonzero(self._counts)[0])
        named = {name: self.quantile(share) for name, share in quantiles.items()}
        return {"mean": round(self._sum / self.num_texts, 2), "min": least, **named, "max": self._max}

    def cut_by(self, limit: int) -> dict[str, float]:
        """Shares of the texts, and of what is in them, that a limit would cut off."""
        lengths = np.arange(_COUNTED)
        texts = self._counts[limit + 1 :].sum() / max(self.num_texts, 1)
        beyond = (self._counts * np.maximum(lengths - limit, 0)).sum() / max(self._sum, 1)
        return {"texts": round(float(texts), 5), "of_all": round(float(beyond), 5)}

    def histogram(self, num_bars: int = 32) -> list[tuple[int, int, int]]:
        """(from, to, texts) of bars of equal width up to the 99th percentile; the last holds all that is longer."""
        width = max(1, -(-(self.quantile(0.99) + 1) // num_bars))
        edges = range(0, width * num_bars, width)
        bars = [(start, start + width - 1, int(self._counts[start : start + width].sum())) for start in edges]
        start, _, texts = bars[-1]
        return [*bars[:-1], (start, max(self._max, start), texts + int(self._counts[width * num_bars :].sum()))]
