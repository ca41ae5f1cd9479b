"""Several phonemizers as one: a language each for the terms of a mixed glossary, and several pronunciations a term.

"data" is said in two ways, "Paris" in one way by an English speaker and in another by a French one. A `Pronouncer` asks
the phonemizer of each term's language for one pronunciation or all of them, and joins the symbols that they can give.

One rule for languages: a `Pronouncer` that is given `languages` refuses the ones it does not know; one that is given
none says every text in the same way, whatever its language is said to be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.text.languages import language_code, primary_language
from qwen_term_retrieval.text.phonetics import GraphemeToPhoneme, get_phonemizer

_OR = "|"


class Pronouncer:
    """Texts in, pronunciations out.

    Args:
        phonemizer: of terms without a language and of those in its own: "en" and "en-AU" are said by "espeak:en-us".
            Several joined by "|", such as "espeak:en-us|espeak:en-gb-x-rp", give a term a pronunciation each.
        languages: the phonemizers of other languages by their codes, such as `{"fr": "espeak:fr"}`; "fr-CA" is said by
            that of "fr" where it has none of its own.
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
        # By the code of a language, its name in `_phonemizers`: the default's own language has none.
        own_languages: dict[str | None, str | None] = {one.language: None for one in self._phonemizers[None]}
        self._spoken_as = own_languages | {language_code(name): name for name in self._phonemizers}
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
            languages: the code of each one's language, None where it is not known; see the module for the rule.

        Raises:
            ValueError: a language has no phonemizer; names the text.
        """
        if languages is None:
            languages = [None] * len(texts)
        name_of: dict[str | None, str | None] = {}
        for language in dict.fromkeys(languages):
            if not self.reads(language):
                raise ValueError(f"{texts[list(languages).index(language)]!r}: {self.unread(language)}")
            name_of[language] = self._name_of(language)
        rows_of: dict[str | None, list[int]] = {}
        for row, language in enumerate(languages):
            rows_of.setdefault(name_of[language], []).append(row)
        spoken: list[list[list[str]]] = [[] for _ in texts]
        for name, rows in rows_of.items():
            own = [texts[row] for row in rows]
            for phonemizer in self._phonemizers[name]:
                ways = phonemizer.pronunciations(own) if self._several else [[p] for p in phonemizer.phonemes(own)]
                for row, found in zip(rows, ways, strict=True):
                    spoken[row] += [way for way in found if way not in spoken[row]]
        return spoken

    def reads(self, language: str | None) -> bool:
        """Whether texts in this language can be pronounced."""
        return len(self._phonemizers) == 1 or self._code(language) in self._spoken_as

    def has_own(self, language: str | None) -> bool:
        """Whether texts in this language are said otherwise than those without one."""
        return self.reads(language) and self._name_of(language) is not None

    def unread(self, language: str | None) -> str:
        """What to tell the user about a language that cannot be pronounced: what there is, and the remedy."""
        known, code = sorted(filter(None, self._phonemizers)), language_code(language)
        return (
            f"no phonemizer for {language!r}: the 'languages' of text_tower_config name {known}. "
            f'Train with {{"{code}": "espeak:{code}"}} among them'
        )

    def _name_of(self, language: str | None) -> str | None:
        return None if len(self._phonemizers) == 1 else self._spoken_as[self._code(language)]

    def _code(self, language: str | None) -> str | None:
        """The code that a language is known by here: its own, or that without the region."""
        code = language_code(language)
        return code if code in self._spoken_as else primary_language(code)


def check_glossary(glossary: Glossary, pronouncer: Pronouncer) -> None:
    """See that all terms of a glossary can be pronounced.

    Raises:
        ValueError: a language has no phonemizer; names the glossary, the language, how many terms are in it, the first,
            and the remedy.
    """
    languages = glossary.languages
    for language in dict.fromkeys(languages):
        if not pronouncer.reads(language):
            raise ValueError(
                f"{glossary.source}: {languages.count(language)} terms are in {language!r}, the first is "
                f"{glossary.texts[languages.index(language)]!r}: {pronouncer.unread(language)}."
            )
