"""Terms and glossaries: what counts as the same term, and how a glossary is read.

Two spellings are one term when `normalize_term` maps them to the same string; `term_id` is a stable 63-bit hash of
that string. An entry with aliases gives all its spellings the id of its first spelling, so that a loss never treats
an alias as a wrong answer.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from num2words import num2words

MAX_TERM_WORDS = 50
LONGEST_SPOKEN_WORDS = 8
_NUMBER = re.compile(r"(\d+)(st|nd|rd|th)?(?!\w)|\d+")
_APOSTROPHES = re.compile("[’ʼ]")
_NOT_WORD = re.compile(r"(?:[^\w+#']|_|(?<!\w)'|'(?!\w))+")


@functools.lru_cache(maxsize=1 << 16)
def normalize_term(text: str, language: str = "en") -> str:
    """Fold what cannot be heard: case, punctuation, spacing, compatibility forms; spell digits out.

    `+` and `#` stay, because "C", "C++" and "C#" are three terms.

    >>> normalize_term("Folder  7"), normalize_term("the 30th")
    ('folder seven', 'the thirtieth')
    >>> normalize_term("Parkinson’s disease")
    "parkinson's disease"
    """
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
    return num2words(number, lang=language, to=to).replace("-", " ").replace(",", "")


def term_id(term: str, language: str = "en") -> int:
    """Stable identity of a term: 63-bit xxh3 of its normalised spelling, the same in every process and run."""
    return xxhash.xxh3_64_intdigest(normalize_term(term, language).encode()) >> 1


def spoken_spellings(text: str, language: str = "en") -> Iterator[str]:
    """Every run of up to `LONGEST_SPOKEN_WORDS` words of a text: the terms that are said in it, labelled or not.

    >>> list(spoken_spellings("Atrial fibrillation"))
    ['atrial', 'atrial fibrillation', 'fibrillation']
    """
    words = normalize_term(text, language).split()
    for first in range(len(words)):
        for end in range(first + 1, min(first + LONGEST_SPOKEN_WORDS, len(words)) + 1):
            yield " ".join(words[first:end])


@dataclass(frozen=True)
class Term:
    """One glossary entry: the spelling to show, its id, and further spellings of the same thing."""

    text: str
    term_id: int
    aliases: tuple[str, ...] = ()

    @property
    def spellings(self) -> tuple[str, ...]:
        return (self.text, *self.aliases)


class Glossary(Sequence[Term]):
    """An ordered list of distinct terms.

    Blanks and repeats in the input are dropped and counted (`num_blank`, `num_duplicates`), never silently:
    `summary()` says how many.
    """

    def __init__(self, entries: Iterable[str | Mapping[str, Any]], *, language: str = "en", source: str = "glossary"):
        self.language = language
        self.source = source
        self.num_blank = 0
        self.num_duplicates = 0
        self._terms: list[Term] = []
        self._id_of_spelling: dict[str, int] = {}
        for row, entry in enumerate(entries, start=1):
            self._add(entry, row)
        if not self._terms:
            raise ValueError(f"{source}: holds no term ({self.num_blank} blank entries). Give at least one term.")

    def _add(self, entry: str | Mapping[str, Any], row: int) -> None:
        text, aliases = _parse_entry(entry, f"{self.source}, entry {row}")
        normalized = normalize_term(text, self.language)
        if not normalized:
            self.num_blank += 1
            return
        if len(normalized.split()) > MAX_TERM_WORDS:
            raise ValueError(
                f"{self.source}, entry {row}: a term of {len(normalized.split())} words ({text[:60]!r}…); "
                f"the limit is {MAX_TERM_WORDS}. Is this a sentence column?"
            )
        if normalized in self._id_of_spelling:
            self.num_duplicates += 1
            return
        identity = term_id(text, self.language)
        kept = []
        for alias in aliases:
            spelling = normalize_term(alias, self.language)
            if self._id_of_spelling.setdefault(spelling, identity) != identity:
                self.num_duplicates += 1  # it is another term's spelling already
            elif spelling and spelling != normalized:
                kept.append(alias)
        self._id_of_spelling[normalized] = identity
        self._terms.append(Term(text.strip(), identity, tuple(kept)))

    @classmethod
    def from_file(cls, path: str | Path, *, language: str = "en") -> Glossary:
        """Read a glossary file.

        `.txt` holds a term a line; `.json` a list of strings or of `{"term": …, "aliases": […]}`, or a dict keyed by
        term; `.jsonl` such an entry a line; `.csv`, `.tsv` and `.parquet` a column `term` and, if there is one, a
        column `aliases`, split by `|`.

        Raises:
            FileNotFoundError, ValueError: naming the file, the row and the remedy.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"glossary {path} does not exist")
        return cls(_read_entries(path), language=language, source=str(path))

    @property
    def texts(self) -> list[str]:
        return [term.text for term in self._terms]

    def joined_by(self, terms: Iterable[str]) -> Glossary:
        """This glossary and those of `terms` that it does not know, under any spelling."""
        entries: list[Any] = [{"term": term.text, "aliases": term.aliases} for term in self]
        entries += [term for term in terms if term not in self]
        return Glossary(entries, language=self.language, source=self.source)

    def id_of(self, spelling: str) -> int | None:
        """The term id that a spelling or alias belongs to; None where the glossary does not know it."""
        return self._id_of_spelling.get(normalize_term(spelling, self.language))

    def summary(self) -> str:
        dropped = f", {self.num_blank} blank and {self.num_duplicates} repeated entries left out"
        return f"{len(self)} terms" + (dropped if self.num_blank or self.num_duplicates else "")

    def __len__(self) -> int:
        return len(self._terms)

    def __getitem__(self, index):
        return self._terms[index]

    def __iter__(self) -> Iterator[Term]:
        return iter(self._terms)

    def __contains__(self, spelling: object) -> bool:
        return isinstance(spelling, str) and self.id_of(spelling) is not None


def _parse_entry(entry: str | Mapping[str, Any], where: str) -> tuple[str, Sequence[str]]:
    if isinstance(entry, str):
        return entry, ()
    if isinstance(entry, Mapping) and isinstance(entry.get("term"), str):
        aliases = entry.get("aliases") or ()
        if isinstance(aliases, str):
            aliases = aliases.split("|")
        if not all(isinstance(alias, str) for alias in aliases):
            raise ValueError(f"{where}: aliases must be strings, not {aliases!r}")
        return entry["term"], aliases
    raise ValueError(f"{where}: expected a string or a mapping with the key 'term', not {str(entry)[:80]!r}")


def _read_entries(path: Path) -> Iterable[str | Mapping[str, Any]]:
    suffix = path.suffix.lower()
    if suffix in {".csv", ".tsv", ".parquet"}:
        return _read_table(path, suffix)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8. Save the file as UTF-8.") from error
    if suffix == ".json":
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
        if isinstance(content, dict):
            return [{"term": key, **(value if isinstance(value, dict) else {})} for key, value in content.items()]
        if not isinstance(content, list):
            raise ValueError(f"{path}: expected a list of terms or a dict keyed by term, not {type(content).__name__}")
        return content
    if suffix == ".jsonl":
        return [_parse_json_line(path, number, line) for number, line in enumerate(text.splitlines(), start=1)]
    return text.splitlines()


def _parse_json_line(path: Path, number: int, line: str) -> str | Mapping[str, Any]:
    try:
        return json.loads(line) if line.strip() else ""
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON: {error.msg}") from error


def _read_table(path: Path, suffix: str) -> list[Mapping[str, Any]]:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if suffix == ".parquet":
            table = parquet.read_table(path)
        else:
            table = csv.read_csv(path, parse_options=csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ","))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: {error}") from error
    if "term" not in table.column_names:
        raise ValueError(
            f"{path}: no column 'term'; it has {table.column_names}. Rename the column of terms to 'term'."
        )
    columns = [name for name in ("term", "aliases") if name in table.column_names]
    return [row | {"term": str(row["term"] or "")} for row in table.select(columns).to_pylist()]
