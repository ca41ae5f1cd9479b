"""Terms and glossaries: what counts as the same term, and how a glossary is read.

Two spellings are one term when `normalize_term` maps them to the same string; `term_id` is a stable 63-bit hash of
that string. An entry with aliases gives all its spellings the id of its first spelling, so that a loss never treats
an alias as a wrong answer.

One spelling in two languages is two terms: "Paris" sounds otherwise in French, and "pain" is another thing. No loss and
no evaluation takes one for a wrong answer to the other, see `SpellingTable.every`. Regions are one language ("fr-CA" is
"fr"), and English shares its ids with terms that have no language.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import xxhash
from num2words import num2words

from qwen_term_retrieval.text.glossary_files import read_entries
from qwen_term_retrieval.text.languages import ENGLISH, language_code, primary_language

MAX_TERM_WORDS = 50
MAX_TERM_CHARACTERS = 1000
_NUMBER = re.compile(r"(\d+)(st|nd|rd|th)?(?!\w)|\d+")
_APOSTROPHES = re.compile("[’ʼ]")
_NOT_WORD = re.compile(r"(?:[^\w+#']|_|(?<!\w)'|'(?!\w))+")


def normalize_term(text: str, language: str | None = None) -> str:
    """Fold what cannot be heard: case, punctuation, spacing, compatibility forms; spell digits out.

    `+` and `#` stay, because "C", "C++" and "C#" are three terms. Digits are spelled in `language`, in English where
    it is None; in a language that num2words does not speak they stay digits.

    >>> normalize_term("Folder  7"), normalize_term("the 30th"), normalize_term("Dossier 7", "fr")
    ('folder seven', 'the thirtieth', 'dossier sept')
    >>> normalize_term("Parkinson’s disease")
    "parkinson's disease"
    """
    return _normalize(text, primary_language(language) or ENGLISH)


@functools.lru_cache(maxsize=1 << 16)
def _normalize(text: str, language: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
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


@dataclass(frozen=True)
class Term:
    """One glossary entry: the spelling to show, its id, further spellings of the same thing, and their language.

    However the language is written ("pt_BR"), a term has it as `language_code` writes it.
    """

    text: str
    term_id: int
    aliases: tuple[str, ...] = ()
    language: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "language", language_code(self.language))

    @property
    def spellings(self) -> tuple[str, ...]:
        return (self.text, *self.aliases)

    @property
    def spelling_ids(self) -> tuple[int, ...]:
        """The id that each of `spellings` would have as a term of its own: what tells one sound from another."""
        return (self.term_id, *(term_id(alias, self.language) for alias in self.aliases))


def distinct_terms(said: Iterable[tuple[str, str | None]]) -> list[Term]:
    """Each spelling once in each language, in the order of the alphabet.

    Args:
        said: terms as they were spelled, and their languages.
    """
    distinct = {Term(text, term_id(text, language), language=language) for text, language in set(said)}
    return sorted(distinct, key=lambda term: (term.text, term.language or ""))


class Glossary(Sequence[Term]):
    """An ordered list of distinct terms.

    Blanks, repeats and aliases that another term has already are dropped and counted (`num_blank`, `num_duplicates`,
    `num_foreign_aliases`), never silently: `summary()` says how many.

    Args:
        entries: strings, `Term`s, or mappings with the keys `term` and, where there are any, `aliases` and `language`.
        language: of the entries that name none; None: what a model takes for its own.
        source: what messages call it.

    Raises:
        ValueError: no term, a sentence for a term, an entry of another kind, a bare string; says which.
    """

    def __init__(
        self,
        entries: Iterable[str | Term | Mapping[str, Any]],
        *,
        language: str | None = None,
        source: str = "glossary",
    ):
        if isinstance(entries, str):
            raise ValueError(f"{source}: {entries[:60]!r} is one string; one term is a list of one: [{entries[:60]!r}]")
        self.language = language_code(language)
        self.source = source
        self.num_blank = 0
        self.num_duplicates = 0
        self.num_foreign_aliases = 0
        self.spellings = SpellingTable()
        self._terms: list[Term] = []
        for row, entry in enumerate(entries, start=1):
            self._add(entry, row)
        if not self._terms:
            raise ValueError(f"{source}: holds no term ({self.num_blank} blank entries). Give at least one term.")

    def _add(self, entry: str | Term | Mapping[str, Any], row: int) -> None:
        text, aliases, language = _parse_entry(entry, f"{self.source}, entry {row}")
        language = language or self.language
        _check_characters((text, *aliases), f"{self.source}, entry {row}")
        normalized = normalize_term(text, language)
        if not normalized:
            self.num_blank += 1
            return
        if len(normalized.split()) > MAX_TERM_WORDS:
            raise ValueError(
                f"{self.source}, entry {row}: a term of {len(normalized.split())} words ({text[:60]!r}…); "
                f"the limit is {MAX_TERM_WORDS}. Is this a sentence column?"
            )
        if self.spellings.own(text, language) is not None:
            self.num_duplicates += 1
            return
        identity = self.spellings.add(text, language, term_id(text, language))
        kept = []
        for alias in aliases:
            spelling = normalize_term(alias, language)
            if spelling and self.spellings.add(alias, language, identity) != identity:
                self.num_foreign_aliases += 1
            elif spelling and spelling != normalized:
                kept.append(alias)
        self._terms.append(Term(text.strip(), identity, tuple(kept), language))

    @classmethod
    def from_file(cls, path: str | Path, *, language: str | None = None) -> Glossary:
        """Read a glossary file.

        `.txt` holds a term a line; `.json` a list of strings or of `{"term": …, "aliases": […], "language": "fr"}`, or
        a dict of these, or of lists of aliases, keyed by term; `.jsonl` such an entry a line; `.csv`, `.tsv` and
        `.parquet` a column `term` and, if there are any, columns `aliases`, split by `|`, and `language`. A `.csv` may
        be divided by semicolons or tabs.

        Args:
            language: of the entries that name none.

        Raises:
            FileNotFoundError, ValueError: naming the file, the row and the remedy.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"glossary {path} does not exist")
        return cls(read_entries(path), language=language, source=str(path))

    @property
    def texts(self) -> list[str]:
        return [term.text for term in self._terms]

    @property
    def languages(self) -> list[str | None]:
        """The language of each of `texts`."""
        return [term.language for term in self._terms]

    def joined_by(self, terms: Iterable[str | Term]) -> Glossary:
        """This glossary and those of `terms` that it does not know, under any spelling."""
        as_terms = (Term(term, 0) if isinstance(term, str) else term for term in terms)
        new = [term for term in as_terms if self.id_of(term.text, term.language) is None]
        return Glossary([*self, *new], language=self.language, source=self.source)

    def id_of(self, spelling: str, language: str | None = None) -> int | None:
        """The term id that a spelling or alias belongs to; None where the glossary does not know it.

        A language that is not known matches any, see `SpellingTable`.
        """
        return self.spellings.get(spelling, language)

    def summary(self) -> str:
        dropped = f", {self.num_blank} blank and {self.num_duplicates} repeated entries left out"
        foreign = f", aliases left out that another term has: {self.num_foreign_aliases}"
        return (
            f"{len(self)} terms"
            + (dropped if self.num_blank or self.num_duplicates else "")
            + (foreign if self.num_foreign_aliases else "")
        )

    def __repr__(self) -> str:
        return f"<Glossary {self.source}: {self.summary()}>"

    def __len__(self) -> int:
        return len(self._terms)

    @overload
    def __getitem__(self, index: int) -> Term: ...

    @overload
    def __getitem__(self, index: slice) -> list[Term]: ...

    def __getitem__(self, index: int | slice) -> Term | list[Term]:
        return self._terms[index]

    def __iter__(self) -> Iterator[Term]:
        return iter(self._terms)

    def __contains__(self, spelling: object) -> bool:
        return isinstance(spelling, str) and self.id_of(spelling) is not None


def _check_characters(spellings: Iterable[str], where: str) -> None:
    """Refuse before anything is made of it what nobody could say: it would take minutes to pronounce."""
    for spelling in spellings:
        if len(spelling) > MAX_TERM_CHARACTERS:
            num_words = len(spelling.split())
            is_sentence = num_words > MAX_TERM_WORDS
            length = f"{num_words:,} words" if is_sentence else f"{len(spelling):,} characters"
            limit = f"{MAX_TERM_WORDS}" if is_sentence else f"{MAX_TERM_CHARACTERS:,}"
            column = "Is this a sentence column?" if is_sentence else "Is this a column of terms?"
            raise ValueError(f"{where}: a term of {length} ({spelling[:60]!r}…); the limit is {limit}. {column}")


def _parse_entry(entry: str | Term | Mapping[str, Any], where: str) -> tuple[str, Sequence[str], str | None]:
    """Spelling, aliases and language of an entry."""
    if isinstance(entry, str):
        return entry, (), None
    if isinstance(entry, Term):
        return entry.text, entry.aliases, entry.language
    if isinstance(entry, Mapping) and isinstance(entry.get("term"), str):
        aliases = entry.get("aliases") or ()
        if isinstance(aliases, str):
            aliases = aliases.split("|")
        if not all(isinstance(alias, str) for alias in aliases):
            raise ValueError(f"{where}: aliases must be strings, not {aliases!r}")
        language = entry.get("language")
        if not isinstance(language, str | None):
            raise ValueError(f"{where}: language must be a code such as 'fr', or nothing, not {language!r}")
        return entry["term"], aliases, language_code(language)
    raise ValueError(f"{where}: expected a string or a mapping with the key 'term', not {str(entry)[:80]!r}")
