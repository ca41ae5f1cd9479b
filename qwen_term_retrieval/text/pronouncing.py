"""Several phonemizers as one: a language each for the terms of a mixed glossary, and several pronunciations a term.

"data" is said in two ways, "Paris" in one way by an English speaker and in another by a French one. A `Pronouncer` asks
the phonemizer of each term's language for one pronunciation or all of them, and joins the symbols that they can give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from qwen_term_retrieval.text.phonetics import GraphemeToPhoneme, get_phonemizer

_OR = "|"


class Pronouncer:
    """Texts in, pronunciations out.

    Args:
        phonemizer: of terms without a language; several joined by "|", such as "espeak:en-us|espeak:en-gb", give a
            term a pronunciation each.
        languages: the phonemizers of other languages by their codes, such as `{"fr": "espeak:fr"}`.
        several: all pronunciations of a term, or the first alone.

    Raises:
        ValueError: a phonemizer is unknown, or several are given where one pronunciation is wanted.
        PhonemizerError: a phonemizer cannot be had on this machine.

    Example:
        >>> Pronouncer("characters", several=False).pronunciations(["ox"])
        [[['o', 'x']]]
    """

    def __init__(self, phonemizer: str, languages: Mapping[str, str] | None = None, *, several: bool = False):
        names: dict[str | None, str] = {None: phonemizer}
        # Sorted, as a saved config is: the fingerprint must not depend on the order in which they were named.
        names.update(sorted((languages or {}).items()))
        self._several = several
        self._phonemizers: dict[str | None, list[GraphemeToPhoneme]] = {}
        for language, name in names.items():
            if _OR in name and not several:
                raise ValueError(f'{name!r} gives several pronunciations a term: set heteronyms="mean" as well')
            self._phonemizers[language] = [get_phonemizer(part.strip()) for part in name.split(_OR)]
        every = [one for many in self._phonemizers.values() for one in many]
        self.symbols = tuple(dict.fromkeys(symbol for one in every for symbol in one.symbols))

    def fingerprint(self) -> str:
        """As `GraphemeToPhoneme.fingerprint`, of all phonemizers and their languages; of a single one it is its own."""
        prints = {language: [one.fingerprint() for one in many] for language, many in self._phonemizers.items()}
        if list(prints) == [None] and len(prints[None]) == 1:
            return prints[None][0]
        joined = "|".join(f"{language or ''}:{','.join(many)}" for language, many in prints.items())
        return hashlib.sha256(joined.encode()).hexdigest()[:16]

    def pronunciations(
        self, texts: Sequence[str], languages: Sequence[str | None] | None = None
    ) -> list[list[list[str]]]:
        """The pronunciations of each text, at least one, of which one may be empty.

        Args:
            texts: terms.
            languages: the language of each, None for the default; "fr-CA" is taken for "fr" where only that is known.

        Raises:
            ValueError: a language has no phonemizer.
        """
        if languages is None:
            languages = [None] * len(texts)
        rows_of: dict[str | None, list[int]] = {}
        for row, language in enumerate(languages):
            rows_of.setdefault(self._known(language), []).append(row)
        spoken: list[list[list[str]]] = [[] for _ in texts]
        for language, rows in rows_of.items():
            own = [texts[row] for row in rows]
            for phonemizer in self._phonemizers[language]:
                ways = phonemizer.pronunciations(own) if self._several else [[p] for p in phonemizer.phonemes(own)]
                for row, found in zip(rows, ways, strict=True):
                    spoken[row] += [way for way in found if way not in spoken[row]]
        return spoken

    def _known(self, language: str | None) -> str | None:
        if language is None or language in self._phonemizers:
            return language
        base = language.partition("-")[0]
        if base in self._phonemizers:
            return base
        known = sorted(filter(None, self._phonemizers))
        raise ValueError(
            f"no phonemizer for terms in {language!r}: text_tower_config['languages'] names {known or 'none'}"
        )
