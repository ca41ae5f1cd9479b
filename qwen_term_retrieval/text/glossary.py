"""Terms and glossaries: entries, each once, and what was left out.

An entry with aliases gives all its spellings the id of its first spelling, so that a loss never treats an alias as a
wrong answer. What counts as the same spelling: `spellings.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from qwen_term_retrieval.text.entries import Entry, as_said, check_length, name_unknown, parse_mapping
from qwen_term_retrieval.text.glossary_files import read_entries
from qwen_term_retrieval.text.languages import language_code
from qwen_term_retrieval.text.spellings import MAX_TERM_WORDS, SpellingTable, normalize_term, term_id
from qwen_term_retrieval.text.spoken import spoken_forms

_MOST_NAMED = 3


@dataclass(frozen=True)
class Term:
    """One glossary entry: the spelling to show, its id, further spellings of the same thing, and their language.

    However the language is written ("pt_BR"), a term has it as `language_code` writes it.

    Args:
        pronunciations: how the text is said, in place of what a phonemizer makes of it; see `entries.py`.
        weight: what the odds of the term having been said are multiplied by.
        threshold: what a match of it must reach, in place of the model's threshold.
    """

    text: str
    term_id: int
    aliases: tuple[str, ...] = ()
    language: str | None = None
    pronunciations: tuple[str, ...] = ()
    weight: float = 1.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "language", language_code(self.language))
        said = tuple(as_said(each, repr(self.text), self.text) for each in self.pronunciations)
        object.__setattr__(self, "pronunciations", said)

    @property
    def spellings(self) -> tuple[str, ...]:
        return (self.text, *self.aliases)

    @property
    def sayings(self) -> tuple[str, ...]:
        """Every way that the term and its aliases are said, in words or sounds; what is searched for."""
        own = self.pronunciations or spoken_forms(self.text, self.language)
        if not self.aliases:
            return own
        of_aliases = (way for alias in self.aliases for way in spoken_forms(alias, self.language))
        return tuple(dict.fromkeys([*own, *of_aliases]))

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


@dataclass(frozen=True)
class Dropped:
    """What a glossary left out: the number of the entry, the spelling, and the term that is said as it, if one is."""

    row: int
    text: str
    kept: int | None = None
    is_alias: bool = False


class Glossary(Sequence[Term]):
    """An ordered list of distinct terms.

    Blanks, repeats and aliases that another term has already are dropped and counted (`num_blank`, `num_duplicates`,
    `num_foreign_aliases`), never silently: `dropped` holds them, `summary()` says how many and names the first.

    Args:
        entries: strings, `Term`s, or mappings with the key `term` and, where there are any, `aliases`, `language`,
            `pronunciations`, `weight` and `threshold`; see `Term`. Other keys are named in `summary()`.
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
        self.dropped: list[Dropped] = []
        self.unknown_keys: dict[str, None] = {}
        self.spellings = SpellingTable()
        self._terms: list[Term] = []
        for row, entry in enumerate(entries, start=1):
            self._add(entry, row)
        if not self._terms:
            raise ValueError(f"{source}: holds no term ({self.num_blank} blank entries). Give at least one term.")

    def _add(self, given: str | Term | Mapping[str, Any], row: int) -> None:
        where = f"{self.source}, entry {row}"
        entry = _parse_entry(given, where)
        _check_words(entry.text.split(), entry.text, where)
        for spelling in (entry.text, *entry.aliases):
            check_length(spelling, where)
        self.unknown_keys.update(dict.fromkeys(entry.unknown))
        language = entry.language or self.language
        normalized = normalize_term(entry.text, language)
        if not normalized:
            self.dropped.append(Dropped(row, entry.text))
            return
        _check_words(normalized.split(), entry.text, where)
        known = self.spellings.own(entry.text, language)
        if known is not None:
            self.dropped.append(Dropped(row, entry.text, known))
            return
        identity = self.spellings.add(entry.text, language, term_id(entry.text, language))
        kept = []
        for alias in entry.aliases:
            spelling = normalize_term(alias, language)
            owner = self.spellings.add(alias, language, identity) if spelling else None
            if owner not in (None, identity):
                self.dropped.append(Dropped(row, alias, owner, is_alias=True))
            elif spelling and spelling != normalized:
                kept.append(alias)
        self._terms.append(
            Term(
                entry.text.strip(), identity, tuple(kept), language, entry.pronunciations, entry.weight, entry.threshold
            )
        )

    @classmethod
    def from_file(cls, path: str | Path, *, language: str | None = None) -> Glossary:
        """Read a glossary file.

        `.txt` holds a term a line; `.json` a list of strings or of `{"term": …, "aliases": […], "language": "fr",
        "pronunciations": ["/p a ʁ i/"], "weight": 2, "threshold": 0.7}`, or a dict of these, or of lists of aliases,
        keyed by term; `.jsonl` such an entry a line; `.csv`, `.tsv` and `.parquet` columns of these names, of which
        `term` alone must be there; what is several is split by `|`. A `.csv` may be divided by semicolons or tabs.

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

    def without(self, term_ids: Collection[int]) -> Glossary:
        """This glossary without the terms of these ids, which it does not know then."""
        other = copy.copy(self)
        other._terms = [term for term in self._terms if term.term_id not in term_ids]
        other.spellings = self.spellings.without(term_ids)
        other.dropped = [each for each in self.dropped if each.kept not in term_ids]
        return other

    def id_of(self, spelling: str, language: str | None = None) -> int | None:
        """The term id that a spelling or alias belongs to; None where the glossary does not know it.

        A language that is not known matches any, see `SpellingTable`.
        """
        return self.spellings.get(spelling, language)

    @property
    def num_blank(self) -> int:
        """Entries in which nothing is said."""
        return sum(each.kept is None for each in self.dropped)

    @property
    def num_duplicates(self) -> int:
        """Entries that are said as one before them."""
        return sum(each.kept is not None and not each.is_alias for each in self.dropped)

    @property
    def num_foreign_aliases(self) -> int:
        """Aliases that are said as another term."""
        return sum(each.is_alias for each in self.dropped)

    def name_dropped(self, most: int | None = None) -> list[str]:
        """What was left out and why, a line each; `most` lines, or all."""
        text_of = {term.term_id: term.text for term in self._terms}
        return [
            f"entry {each.row}, {'alias ' if each.is_alias else ''}{each.text[:60]!r}: "
            + ("nothing is said" if each.kept is None else f"said as {text_of[each.kept]!r}")
            for each in self.dropped[:most]
        ]

    def summary(self) -> str:
        """How many terms there are, what was left out, and which keys say nothing."""
        num_entries = self.num_blank + self.num_duplicates
        parts = [f"{len(self)} terms"]
        if num_entries:
            parts.append(f"{self.num_blank} blank and {self.num_duplicates} repeated entries left out")
        if self.num_foreign_aliases:
            parts.append(f"aliases left out that another term has: {self.num_foreign_aliases}")
        more = len(self.dropped) - _MOST_NAMED
        named = "; ".join(self.name_dropped(_MOST_NAMED)) + (f"; {more} more, see `qtr pronounce`" if more > 0 else "")
        keys = f". Not understood, and left out: {name_unknown(self.unknown_keys)}" if self.unknown_keys else ""
        return ", ".join(parts) + (f" ({named})" if named else "") + keys

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


def _parse_entry(entry: str | Term | Mapping[str, Any], where: str) -> Entry:
    if isinstance(entry, str):
        return Entry(entry)
    if isinstance(entry, Term):
        said = (entry.pronunciations, entry.weight, entry.threshold)
        return Entry(entry.text, entry.aliases, entry.language, *said)
    if isinstance(entry, Mapping):
        return parse_mapping(entry, where)
    raise ValueError(f"{where}: expected a string or a mapping with the key 'term', not {str(entry)[:80]!r}")


def _check_words(words: Sequence[str], text: str, where: str) -> None:
    if len(words) > MAX_TERM_WORDS:
        raise ValueError(
            f"{where}: a term of {len(words)} words ({text[:60]!r}…); "
            f"the limit is {MAX_TERM_WORDS}. Is this a sentence column?"
        )
