"""What counts as the same term: spellings to the string of what is heard, and tables of them by language.

Two spellings are one term when `normalize_term` maps them to the same string, which folds what cannot be heard and
keeps what can: "5 %" is "five percent". `term_id` is a stable 63-bit hash of that string.

One spelling in two languages is two terms: "Paris" sounds otherwise in French, and "pain" is another thing. No loss and
no evaluation takes one for a wrong answer to the other, see `SpellingTable.every`. Regions are one language ("fr-CA" is
"fr"), and English shares its ids with terms that have no language.
"""

from __future__ import annotations

import copy
import functools
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator

import xxhash
from num2words import num2words

from qwen_term_retrieval.text.languages import ENGLISH, primary_language
from qwen_term_retrieval.text.spoken import written_out

MAX_TERM_WORDS = 50
_NUMBER = re.compile(r"(\d+)(st|nd|rd|th)?(?!\w)|\d+")
_APOSTROPHES = re.compile("[’ʼ]")
_NOT_WORD = re.compile(r"(?:[^\w+#']|_|(?<![^\W_])'|'(?![^\W_]))+")


def normalize_term(text: str, language: str | None = None) -> str:
    """Fold what cannot be heard: case, punctuation, spacing, compatibility forms; spell signs and digits out.

    `+` and `#` stay, because "C", "C++" and "C#" are three terms, and "US" is no "us". Digits are spelled in
    `language`, in English where it is None; in a language that num2words does not speak they stay digits.

    >>> normalize_term("Folder  7"), normalize_term("the 30th"), normalize_term("Dossier 7", "fr")
    ('folder seven', 'the thirtieth', 'dossier sept')
    >>> normalize_term("$5"), normalize_term("/exit"), normalize_term("US"), normalize_term("us")
    ('five dollars', 'slash exit', 'u s', 'us')
    >>> normalize_term("Parkinson’s disease")
    "parkinson's disease"
    """
    return _normalize(text, primary_language(language) or ENGLISH)


@functools.lru_cache(maxsize=1 << 16)
def _normalize(text: str, language: str) -> str:
    folded = unicodedata.normalize("NFKC", written_out(text, language)).casefold()
    folded = _NUMBER.sub(lambda number: f" {_spell_number(number[1] or number[0], number[2], language)} ", folded)
    return _NOT_WORD.sub(" ", _APOSTROPHES.sub("'", folded)).strip()


def _spell_number(digits: str, ordinal_ending: str | None, language: str) -> str:
    """Numbers of up to four digits are read as numbers, longer ones and those with a leading zero digit by digit."""
    if ordinal_ending:
        return _words(int(digits), language, to="ordinal")
    if len(digits) <= 4 and not (len(digits) > 1 and digits[0] == "0"):
        return _words(int(digits), language)
    return " ".join(_words(int(digit), language) for digit in digits)


def _words(number: int, language: str, to: str = "cardinal") -> str:
    try:
        return num2words(number, lang=language, to=to).replace("-", " ").replace(",", "")
    # num2words lacks the language, or the number in it (0.5.14: the ordinals 0 in Polish and 30 in Catalan).
    except (NotImplementedError, LookupError, OverflowError, TypeError):
        return str(number)


def term_id(term: str, language: str | None = None) -> int:
    """Stable identity of a term: 63-bit xxh3 of its normalised spelling, the same in every process and run.

    A language other than English is part of it.
    """
    language = primary_language(language)
    return xxhash.xxh3_64_intdigest(_key(term, None if language == ENGLISH else language).encode()) >> 1


def _key(spelling: str, language: str | None) -> str:
    """A normalised spelling and its language; no normalised spelling holds an "@"."""
    normalized = normalize_term(spelling, language)
    return normalized if language is None else f"{normalized}@{language}"


def spoken_spellings(text: str, language: str | None = None, *, max_words: int = MAX_TERM_WORDS) -> Iterator[str]:
    """Every run of up to `max_words` words of a text: the terms that are said in it, labelled or not.

    Where a text of another language holds digits, its runs with the digits spelled in English come as well, for
    glossaries that name no language.

    >>> list(spoken_spellings("Atrial fibrillation"))
    ['atrial', 'atrial fibrillation', 'fibrillation']
    """
    for normalized in {normalize_term(text, language): None, normalize_term(text): None}:
        words = normalized.split()
        for first in range(len(words)):
            for end in range(first + 1, min(first + max_words, len(words)) + 1):
                yield " ".join(words[first:end])


class SpellingTable:
    """What a spelling in a language stands for, as a number: the id of a term, or its place in a list.

    A language that nobody says, neither the table nor the asker, may be any: `get` prefers the language asked for,
    then a spelling without one; asked without a language, it takes any that there is.

    Example:
        >>> table = SpellingTable()
        >>> table.add("Paris", "fr", 1), table.add("sepsis", None, 2), table.add("Sepsis", "en-US", 3)
        (1, 2, 2)
        >>> table.get("Paris"), table.get("Paris", "en"), table.get("sepsis", "fr")
        (1, None, 2)
    """

    def __init__(self) -> None:
        self.max_words = 0
        """Words of the longest spelling."""
        self._numbers: dict[str, int] = {}
        self._languages: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def own(self, spelling: str, language: str | None) -> int | None:
        """The number of this spelling in this language alone; English and no language are one."""
        return self._own(spelling, primary_language(language))

    def _own(self, spelling: str, language: str | None) -> int | None:
        twins = (None, ENGLISH) if ENGLISH in self._languages else (None,)
        return self._first(spelling, twins if language in (None, ENGLISH) else (language,))

    def add(self, spelling: str, language: str | None, number: int) -> int:
        """The number that the spelling has from now on: it keeps the one that it has already."""
        language = primary_language(language)
        known = self._own(spelling, language)
        if known is not None:
            return known
        if language is not None:
            self._languages[language] = None
        key = _key(spelling, language)
        self._numbers[key] = number
        self.max_words = max(self.max_words, key.count(" ") + 1)
        return number

    def without(self, numbers: Collection[int]) -> SpellingTable:
        """The table without the spellings that have one of these numbers."""
        other = copy.copy(self)
        other._numbers = {key: number for key, number in self._numbers.items() if number not in numbers}
        return other

    def get(self, spelling: str, language: str | None = None) -> int | None:
        """What the spelling most likely stands for; None where it is not here."""
        language = primary_language(language)
        return self._first(spelling, (None, *self._languages) if language is None else (language, None))

    def _first(self, spelling: str, languages: Iterable[str | None]) -> int | None:
        for language in languages:
            number = self._numbers.get(_key(spelling, language))
            if number is not None:
                return number
        return None

    def every(self, normalized: str) -> list[int]:
        """What a spelling, as `normalize_term` gives it, stands for in all languages."""
        keys = (normalized, *(f"{normalized}@{language}" for language in self._languages))
        return [self._numbers[key] for key in keys if key in self._numbers]
