"""The alphabet of a phoneme head: texts to the classes that it tells apart.

Class 0 is the blank of CTC (Graves et al. 2006), class i + 1 the i-th symbol of the phonemizers. A saved alphabet knows
its symbols and the fingerprint of who gave them, and refuses others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_term_retrieval.text.phonetics import INSTALL_HINT, PhonemizerError
from qwen_term_retrieval.text.pronouncing import Pronouncer
from qwen_term_retrieval.text.ways import Ways

BLANK = 0


class Alphabet:
    """Texts in, pronunciations as classes out.

    Args:
        phonemizer, languages: as `Pronouncer` has them.
        symbols: of a saved alphabet, in the order of its classes; those of the phonemizers where left out.
        fingerprint: of a saved alphabet's phonemizers.

    Raises:
        PhonemizerError: a phonemizer is missing here, or gives other symbols than the alphabet was made with.

    Example:
        >>> alphabet = Alphabet("characters")
        >>> [[way.tolist() for way in ways] for ways in alphabet.pronunciations(["ox"])]
        [[[15, 24]]]
    """

    def __init__(
        self,
        phonemizer: str,
        languages: Mapping[str, str] | None = None,
        *,
        symbols: Sequence[str] = (),
        fingerprint: str = "",
    ):
        self.phonemizer = phonemizer
        self.languages = dict(languages or {})
        self.pronouncer = Pronouncer(phonemizer, languages, several=True)
        self.fingerprint = self.pronouncer.fingerprint()
        if fingerprint and fingerprint != self.fingerprint:
            raise PhonemizerError(
                f"the phonemizer {phonemizer!r} of this machine pronounces the probe words differently "
                f"({self.fingerprint}) from the one the phoneme head was trained with ({fingerprint}), so terms would "
                f"be looked for by wrong sounds. Install the package versions it was trained with: {INSTALL_HINT}"
            )
        self.symbols = tuple(symbols or self.pronouncer.symbols)
        class_of = {symbol: index for index, symbol in enumerate(self.symbols, start=BLANK + 1)}
        # By the number that the pronouncer has for a symbol; the last stands for symbols without a number, -1.
        self._classes = np.array(
            [*(class_of.get(symbol, BLANK) for symbol in self.pronouncer.symbols), BLANK], np.int16
        )

    @property
    def num_classes(self) -> int:
        """Symbols and the blank."""
        return len(self.symbols) + 1

    def settings(self) -> dict[str, Any]:
        """The arguments that make this alphabet again."""
        return {
            "phonemizer": self.phonemizer,
            "languages": self.languages,
            "symbols": list(self.symbols),
            "fingerprint": self.fingerprint,
        }

    def pronunciations(
        self, texts: Sequence[str], languages: Sequence[str | None] | None = None
    ) -> list[list[NDArray[np.int16]]]:
        """Every way to say each text, as classes; none for a text without a sound that the alphabet has.

        Args:
            texts: terms or chunk texts.
            languages: of the texts, None where it is not known; see `Pronouncer`.

        Raises:
            ValueError: a language has no phonemizer.
        """
        return self.classes(self.pronouncer.ways(texts, languages)).lists()

    def classes(self, ways: Ways) -> Ways:
        """What `pronouncer` has said, as classes, without the ways of no sound, or of one that the alphabet lacks."""
        classes_S = self._classes[ways.symbols_S]
        sayable_R = ways.lengths_R > 0
        sayable_R[np.arange(len(sayable_R)).repeat(ways.lengths_R)[classes_S == BLANK]] = False
        return replace(ways, symbols_S=classes_S).only(sayable_R)

    def spell(self, classes: Sequence[int]) -> list[str]:
        """The symbols of classes, without blanks."""
        return [self.symbols[each - BLANK - 1] for each in classes if each != BLANK]
