"""The pronunciations of a glossary, as arrays: ragged, immutable, several a term.

A sound is a class of the phoneme head: class 0 is the CTC blank and is never part of a pronunciation, class i + 1 is
symbol i of the head's alphabet. A million pronunciations of ten sounds are 32 MB, read by memory map where saved.

Shapes: R pronunciations, S sounds of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

BLANK = 0
_FILES = {"classes_S": np.int16, "offsets_R1": np.int64, "owners_R": np.int32}


@dataclass(frozen=True, eq=False)
class PronunciationBank:
    """Pronunciations and the term that each belongs to.

    Args:
        classes_S: int16, the sounds of all pronunciations, one after another, each from 1 to `num_classes` - 1.
        offsets_R1: int64, ascending from 0 to S: pronunciation r is `classes_S[offsets_R1[r] : offsets_R1[r + 1]]`.
        owners_R: int32, the term of each, whatever the caller numbers its terms by.
        num_classes: of the head, with the blank.

    Raises:
        ValueError: an array of another type or shape, an empty pronunciation, a class that the head does not have, a
            negative owner; names the pronunciation and its term.

    Example:
        >>> bank = PronunciationBank.of([[[3, 1, 2]], [[1], [2, 2]]], num_classes=4)
        >>> bank.owners_R.tolist(), bank.lengths.tolist()
        ([0, 1, 1], [3, 1, 2])
    """

    classes_S: np.ndarray
    offsets_R1: np.ndarray
    owners_R: np.ndarray
    num_classes: int

    def __post_init__(self):
        for name, dtype in _FILES.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != 1:
                raise ValueError(f"{name} must be one row of {np.dtype(dtype)}, not {array.dtype} {array.shape}")
        self._check_offsets()
        lengths_R = self.lengths
        if not lengths_R.all():
            raise ValueError(f"{self._named(int(lengths_R.argmin()))} is empty: leave out what has no sound")
        wrong_S = (self.classes_S < 1) | (self.classes_S >= self.num_classes)
        if wrong_S.any():
            place = int(wrong_S.argmax())
            row = int(np.searchsorted(self.offsets_R1, place, side="right")) - 1
            raise ValueError(
                f"{self._named(row)} has class {self.classes_S[place]}; the head's sounds are 1 to "
                f"{self.num_classes - 1}, 0 is the blank. Is it a head of another pronouncer?"
            )
        if len(self) and self.owners_R.min() < 0:
            raise ValueError(f"{self._named(int(self.owners_R.argmin()))}: terms are numbered from 0")

    def _check_offsets(self) -> None:
        offsets_R1, num_sounds = self.offsets_R1, len(self.classes_S)
        if len(offsets_R1) != len(self.owners_R) + 1:
            raise ValueError(f"{len(self.owners_R)} pronunciations need one offset more, not {len(offsets_R1)}")
        if offsets_R1[0] != 0 or offsets_R1[-1] != num_sounds or (np.diff(offsets_R1) < 0).any():
            raise ValueError(f"offsets must ascend from 0 to the {num_sounds} sounds that there are")

    def _named(self, row: int) -> str:
        return f"pronunciation {row} (of term {self.owners_R[row]})"

    @classmethod
    def of(cls, pronunciations: Sequence[Sequence[Sequence[int]]], num_classes: int) -> PronunciationBank:
        """A bank of lists of classes: one list a term, in it one list a pronunciation. Terms are numbered in order.

        Raises:
            ValueError: a term without a pronunciation, or what `PronunciationBank` refuses.
        """
        ways_R = list(chain.from_iterable(pronunciations))
        counts = np.fromiter(map(len, pronunciations), np.int64, len(pronunciations))
        if not counts.all():
            raise ValueError(f"term {counts.argmin()} has no pronunciation: leave it out")
        lengths_R = np.fromiter(map(len, ways_R), np.int64, len(ways_R))
        classes_S = np.fromiter(chain.from_iterable(ways_R), np.int64, lengths_R.sum())
        # Clipped, so that what int16 cannot hold is refused by name and not wrapped around.
        return cls(
            classes_S.clip(-1, np.iinfo(np.int16).max).astype(np.int16),
            np.concatenate([[0], lengths_R.cumsum()]),
            np.arange(len(counts), dtype=np.int32).repeat(counts),
            num_classes,
        )

    @classmethod
    def of_owned(
        cls, pronunciations: Sequence[Sequence[np.ndarray]], num_classes: int, *, first_owner: int = 0
    ) -> PronunciationBank:
        """A bank of arrays of classes: one list a term, which may be empty; terms are numbered from `first_owner`."""
        ways_R = list(chain.from_iterable(pronunciations))
        counts = np.fromiter(map(len, pronunciations), np.int64, len(pronunciations))
        lengths_R = np.fromiter(map(len, ways_R), np.int64, len(ways_R))
        owners = np.arange(first_owner, first_owner + len(counts), dtype=np.int32)
        return cls(
            np.concatenate([np.zeros(0, np.int16), *ways_R]).astype(np.int16, copy=False),
            np.concatenate([[0], lengths_R.cumsum()]),
            owners.repeat(counts),
            num_classes,
        )

    def renumbered(self, owner_of: np.ndarray) -> PronunciationBank:
        """The bank after its terms were numbered anew: `owner_of[old]` is the new number, -1 of a term that is gone."""
        owners_R = owner_of[self.owners_R]
        kept = self.select(np.flatnonzero(owners_R >= 0))
        return PronunciationBank(
            kept.classes_S, kept.offsets_R1, owners_R[owners_R >= 0].astype(np.int32), self.num_classes
        )

    @classmethod
    def of_symbols(
        cls, pronunciations: Sequence[Sequence[Sequence[str]]], alphabet: Sequence[str]
    ) -> PronunciationBank:
        """A bank of what `Pronouncer.pronunciations` gives.

        Args:
            alphabet: the head's symbols; that at position i is class i + 1.

        Raises:
            ValueError: a symbol that the head does not know, or what `of` refuses; names the term.
        """
        class_of = {symbol: number for number, symbol in enumerate(alphabet, start=1)}
        unknown = set(chain.from_iterable(chain.from_iterable(pronunciations))) - class_of.keys()
        if unknown:
            term = next(i for i, ways in enumerate(pronunciations) if not unknown.isdisjoint(chain.from_iterable(ways)))
            raise ValueError(
                f"term {term} is said with sounds that the phoneme head does not know: {sorted(unknown)}. "
                "Pronounce terms as the head's were, or train it with these sounds"
            )
        classes = [[[class_of[symbol] for symbol in way] for way in ways] for ways in pronunciations]
        return cls.of(classes, len(class_of) + 1)

    def __len__(self) -> int:
        return len(self.owners_R)

    def __repr__(self) -> str:
        return f"<PronunciationBank of {len(self)} pronunciations, {len(self.classes_S)} sounds>"

    @property
    def lengths(self) -> np.ndarray:
        """int64 (R,): the sounds of each pronunciation, which a score per sound is divided by."""
        return np.diff(self.offsets_R1)

    def __getitem__(self, row: int) -> np.ndarray:
        """int16: the sounds of one pronunciation."""
        return self.classes_S[self.offsets_R1[row] : self.offsets_R1[row + 1]]

    def select(self, rows_P: np.ndarray) -> PronunciationBank:
        """The bank of these pronunciations, in this order; owners keep their numbers.

        Raises:
            IndexError: a row that is not there.
        """
        rows_P = np.asarray(rows_P, dtype=np.int64)
        if len(rows_P) and (rows_P.min() < 0 or rows_P.max() >= len(self)):
            raise IndexError(f"rows {rows_P.min()} to {rows_P.max()} of {len(self)} pronunciations")
        starts_P, lengths_P = self.offsets_R1[rows_P], self.offsets_R1[rows_P + 1] - self.offsets_R1[rows_P]
        offsets_P1 = np.concatenate([[0], lengths_P.cumsum()])
        sounds = stretches(starts_P, lengths_P)
        return PronunciationBank(self.classes_S[sounds], offsets_P1, self.owners_R[rows_P], self.num_classes)

    def join(self, other: PronunciationBank) -> PronunciationBank:
        """This bank and then the other; owners keep their numbers.

        Raises:
            ValueError: banks of heads with different numbers of classes.
        """
        if self.num_classes != other.num_classes:
            raise ValueError(f"a bank of {self.num_classes} classes and one of {other.num_classes} are of two heads")
        return PronunciationBank(
            np.concatenate([self.classes_S, other.classes_S]),
            np.concatenate([self.offsets_R1, other.offsets_R1[1:] + self.offsets_R1[-1]]),
            np.concatenate([self.owners_R, other.owners_R]),
            self.num_classes,
        )

    def save(self, folder: Path) -> None:
        """Write `classes.npy`, `offsets.npy`, `owners.npy` and `num_classes.npy` into a folder that is there."""
        for name in _FILES:
            np.save(folder / _file_of(name), getattr(self, name))
        np.save(folder / "num_classes.npy", np.int64(self.num_classes))

    @classmethod
    def open(cls, folder: Path) -> PronunciationBank:
        """Open what `save` wrote; the arrays stay on disk until they are asked for.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: what is there is no bank; names the folder.
        """
        try:
            arrays = {name: np.load(folder / _file_of(name), mmap_mode="r") for name in _FILES}
            return cls(**arrays, num_classes=int(np.load(folder / "num_classes.npy")))
        except ValueError as error:
            raise ValueError(f"{folder}: {error}. Make the index again") from error


def stretches(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64: the numbers from each start on, as many as its length, one stretch after another."""
    return np.arange(lengths.sum()) + (starts - (lengths.cumsum() - lengths)).repeat(lengths)


def _file_of(name: str) -> str:
    return f"{name.partition('_')[0]}.npy"
