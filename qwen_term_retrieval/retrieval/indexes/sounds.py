"""How the terms of one part of an index sound: their pronunciations, and the prefix tree that a search walks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.verification.prefix_tree import PrefixTree
from qwen_term_retrieval.verification.pronunciations import PronunciationBank


@dataclass(frozen=True)
class Speaker:
    """Says terms for a phoneme head.

    say: terms -> every way to say each, as classes of the head; a term may have none. num_classes: of the head, with
    the blank. alphabet: the fingerprint of the head's alphabet.
    """

    say: Callable[[Sequence[Term]], list[list[NDArray[np.int16]]]]
    num_classes: int
    alphabet: str = ""

    def sounds_of(self, terms: Sequence[Term]) -> PartSounds:
        return PartSounds.of(PronunciationBank.of_owned(self.say(terms), self.num_classes))


class PartSounds:
    """Pronunciations and their tree; both are read, or made, when first asked for, and never change.

    Args:
        open_bank: gives the pronunciations, owned by the places of the terms in their part.
        open_tree: gives their tree.
    """

    def __init__(self, open_bank: Callable[[], PronunciationBank], open_tree: Callable[[], PrefixTree] | None = None):
        self._open_bank, self._open_tree = open_bank, open_tree

    @classmethod
    def of(cls, bank: PronunciationBank) -> PartSounds:
        return cls(lambda: bank)

    @classmethod
    def open(cls, folder: Path) -> PartSounds:
        return cls(lambda: PronunciationBank.open(folder), lambda: PrefixTree.open(folder))

    @classmethod
    def join(cls, parts: Sequence[PartSounds], places: Sequence[NDArray[np.int64]]) -> PartSounds:
        """The sounds of several parts; `places[i]` gives each term of part i its new number, or -1."""
        bank = parts[0].bank.renumbered(places[0])
        for part, place_of in zip(parts[1:], places[1:], strict=True):
            bank = bank.join(part.bank.renumbered(place_of))
        return cls.of(bank)

    @cached_property
    def bank(self) -> PronunciationBank:
        return self._open_bank()

    @cached_property
    def tree(self) -> PrefixTree:
        return PrefixTree.of(self.bank) if self._open_tree is None else self._open_tree()

    def of_terms(self, places: NDArray[np.int64], numbers: NDArray[np.int64]) -> PronunciationBank:
        """The pronunciations of some terms, owned by other numbers; places ascend, and so do numbers."""
        bank = self.bank
        firsts = np.searchsorted(bank.owners_R, places, side="left")
        counts = np.searchsorted(bank.owners_R, places, side="right") - firsts
        rows = np.arange(counts.sum()) + (firsts - (counts.cumsum() - counts)).repeat(counts)
        chosen = bank.select(rows)
        return PronunciationBank(
            chosen.classes_S, chosen.offsets_R1, numbers.astype(np.int32).repeat(counts), bank.num_classes
        )

    def save(self, folder: Path) -> None:
        """Write bank and tree into a folder that is there."""
        self.bank.save(folder)
        self.tree.save(folder)
