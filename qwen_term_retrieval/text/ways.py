"""Pronunciations of many texts as arrays, so that nobody walks over their symbols one by one.

Shapes: N texts, R ways of all texts, S symbols of all ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Ways:
    """Every way that texts are said; those of a text stand side by side.

    Args:
        symbols_S: int16, numbers of symbols, the ways one behind another.
        lengths_R: int32, the symbols of each way, which may be none.
        counts_N: int32, the ways of each text.

    Example:
        >>> ways = Ways.of([[["o", "x"]], [["a"], []]], {"a": 0, "x": 1})
        >>> ways.symbols_S.tolist(), ways.lengths_R.tolist(), ways.counts_N.tolist()
        ([-1, 1, 0], [2, 1, 0], [1, 2])
    """

    symbols_S: NDArray[np.int16]
    lengths_R: NDArray[np.int32]
    counts_N: NDArray[np.int32]

    @classmethod
    def of(cls, pronunciations: Sequence[Sequence[Sequence[str]]], number_of: Mapping[str, int]) -> Ways:
        """What `Pronouncer.pronunciations` gives, in numbers; -1 is a symbol without one."""
        ways = list(chain.from_iterable(pronunciations))
        return cls(
            np.array([number_of.get(symbol, -1) for way in ways for symbol in way], np.int16),
            np.fromiter(map(len, ways), np.int32, len(ways)),
            np.fromiter(map(len, pronunciations), np.int32, len(pronunciations)),
        )

    @classmethod
    def join(cls, parts: Sequence[Ways]) -> Ways:
        """The texts of all parts, in order."""
        return cls(
            np.concatenate([part.symbols_S for part in parts]),
            np.concatenate([part.lengths_R for part in parts]),
            np.concatenate([part.counts_N for part in parts]),
        )

    def only(self, kept_R: NDArray[np.bool_]) -> Ways:
        """The ways that are kept; a text may have none then."""
        kept_before_R1 = np.concatenate([[0], kept_R.cumsum()])
        ends_N = self.counts_N.cumsum()
        return Ways(
            self.symbols_S[kept_R.repeat(self.lengths_R)],
            self.lengths_R[kept_R],
            (kept_before_R1[ends_N] - kept_before_R1[ends_N - self.counts_N]).astype(np.int32),
        )

    def first(self) -> Ways:
        """The first way of each text, which has one."""
        kept_R = np.zeros(len(self.lengths_R), np.bool_)
        kept_R[self.counts_N.cumsum() - self.counts_N] = True
        return self.only(kept_R)

    def of_groups(self, sizes_G: NDArray[np.int32]) -> Ways:
        """The same ways, those of so many texts in a row as one text's."""
        ends_N1 = np.concatenate([[0], self.counts_N.cumsum()])
        return Ways(self.symbols_S, self.lengths_R, np.diff(ends_N1[sizes_G.cumsum()], prepend=0).astype(np.int32))

    def lists(self) -> list[list[NDArray[np.int16]]]:
        """An array a way, a list a text."""
        ways = iter(np.split(self.symbols_S, self.lengths_R.cumsum()[:-1]))
        return [list(islice(ways, count)) for count in self.counts_N.tolist()]
