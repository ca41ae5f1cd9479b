"""What an entry of a glossary may say, checked: spelling, aliases, language, pronunciations, weight and threshold.

A pronunciation is a respelling ("koo ber netties"), read as it stands, or sounds between slashes or brackets
("/k uː b ɚ n ɛ t iː z/"), in the symbols of the model's phonemizer; `qtr pronounce` shows them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_term_retrieval.did_you_mean import did_you_mean
from qwen_term_retrieval.text.languages import language_code
from qwen_term_retrieval.text.spoken import AsSaid

KEYS = ("term", "aliases", "language", "pronunciations", "weight", "threshold")
_ALSO_KEYS = {"pronunciation": "pronunciations"}
# Nothing that is said in a breath is longer, and a megabyte that is taken for a word would be pronounced for minutes.
MAX_TERM_CHARACTERS = 1000
_MOST_WEIGHT = 1000.0


@dataclass(frozen=True)
class Entry:
    """An entry as it was given; `unknown` are its keys that say nothing to us."""

    text: str
    aliases: Sequence[str] = ()
    language: str | None = None
    pronunciations: tuple[str, ...] = ()
    weight: float = 1.0
    threshold: float | None = None
    unknown: tuple[str, ...] = ()


def parse_mapping(entry: Mapping[str, Any], where: str) -> Entry:
    """An entry that says more than a spelling.

    Raises:
        ValueError: a value of another kind or out of range; names the place, the key and what it takes.
    """
    if not isinstance(entry.get("term"), str):
        raise ValueError(f"{where}: expected a string or a mapping with the key 'term', not {str(entry)[:80]!r}")
    said = {_ALSO_KEYS.get(key, key): value for key, value in entry.items()}
    language = said.get("language")
    if not isinstance(language, str | None):
        raise ValueError(f"{where}: language must be a code such as 'fr', or nothing, not {language!r}")
    return Entry(
        entry["term"],
        _strings(said.get("aliases"), "aliases", where),
        language_code(language),
        tuple(as_said(each, where) for each in _strings(said.get("pronunciations"), "pronunciations", where)),
        _number(said.get("weight"), "weight", where, 1 / _MOST_WEIGHT, _MOST_WEIGHT) or 1.0,
        _number(said.get("threshold"), "threshold", where, -1.0, 1.0),
        tuple(str(key) for key in said if key not in KEYS),
    )


def check_length(text: str, where: str) -> None:
    """Refuse what is no term; raises ValueError naming the place."""
    if len(text) > MAX_TERM_CHARACTERS:
        raise ValueError(
            f"{where}: a term of {len(text):,} characters ({text[:40]!r}…); the limit is {MAX_TERM_CHARACTERS:,}. "
            "Is this the right file, with a term a line?"
        )


def name_unknown(keys: Iterable[str]) -> str:
    """Keys that no entry has, with the ones that were meant."""
    return ", ".join(f"{key!r}{did_you_mean(key, KEYS)}" for key in keys)


def as_said(pronunciation: str, where: str, written: str | None = None) -> AsSaid:
    """A respelling, or sounds in double brackets, as `Pronouncer` reads them.

    Raises:
        ValueError: blank, or too long.

    >>> as_said("/ɡ aʊ t/", "entry 1"), as_said("gowt", "entry 1")
    ('[[ɡ aʊ t]]', 'gowt')
    """
    said = pronunciation.strip()
    check_length(said, where)
    for begin, end in (("[[", "]]"), ("/", "/"), ("[", "]")):
        if said.startswith(begin) and said.endswith(end) and len(said) > len(begin + end):
            return AsSaid(f"[[{said[len(begin) : -len(end)].strip()}]]", written)
    if not any(sign.isalnum() for sign in said):
        raise ValueError(
            f"{where}: the pronunciation {pronunciation!r} says nothing; give a respelling, such as 'gowt', or sounds "
            "between slashes, such as '/ɡ aʊ t/'"
        )
    return AsSaid(said, written)


def _strings(value: Any, key: str, where: str) -> list[str]:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, str):
        value = [part for part in value.split("|") if part.strip()]
    if not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{where}: {key} must be strings, not {value!r}")
    for each in value:
        check_length(each, where)
    return list(value)


def _number(value: Any, key: str, where: str, least: float, most: float) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number) and isinstance(value, float):  # an empty cell of a table
        return None
    if not least <= number <= most:
        raise ValueError(f"{where}: {key} must be a number from {least:g} to {most:g}, not {value!r}")
    return number
