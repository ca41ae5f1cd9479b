"""The folder of a saved `TermIndex`: what it may be written over, and whether it is there whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from qwen_term_retrieval.storage.staging import check_free
from qwen_term_retrieval.text.glossary import Term

FORMAT = "qwen_term_retrieval.term_index"
FORMAT_VERSION = 1
SOUNDS = "sounds"


class TermIndexError(ValueError):
    """A folder is no readable index, or the index belongs to another model."""


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuse where an index may not be written: over something else, or unasked over an index.

    Raises:
        FileExistsError: see `check_free`. TermIndexError: an index of a later version, or another's `meta.json`.
    """
    if (folder / "meta.json").is_file():
        read_meta(folder, complete=False)
    check_free(folder, "a term index", "meta.json", overwrite=overwrite)


def read_meta(folder: Path, *, complete: bool = True) -> dict[str, Any]:
    """The `meta.json` of an index; with `complete`, its other files must have the sizes that it says.

    Raises:
        FileNotFoundError, TermIndexError: naming the folder or the file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"index folder {folder} does not exist")
    if not (folder / "meta.json").is_file():
        raise TermIndexError(f"{folder} is no term index: it has no meta.json. Make one with `qtr index`.")
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise TermIndexError(f"{folder} is not a complete term index: meta.json: {error}") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise TermIndexError(f"{folder} is not a term index: its meta.json says nothing of {FORMAT!r}")
    if meta["version"] > FORMAT_VERSION:
        raise TermIndexError(f"{folder} is an index of version {meta['version']}; this release reads {FORMAT_VERSION}")
    for name, size in meta["bytes"].items() if complete else ():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise TermIndexError(f"{path} is missing or cut short (expected {size} bytes). Index the glossary again.")
    return meta


def entry_columns(terms: Sequence[Term]) -> dict[str, Any]:
    """Columns of `terms.parquet` with a row a vector: what is said, and what else an entry holds."""
    rows = [(term, way) for term in terms for way in term.sayings]
    return {
        "spelling": [str(way) for _, way in rows],
        "spellings": pa.array([term.spellings for term, _ in rows], pa.list_(pa.string())),
        "pronunciations": pa.array([term.pronunciations for term, _ in rows], pa.list_(pa.string())),
        "weight": pa.array([term.weight for term, _ in rows], pa.float64()),
        "threshold": pa.array([term.threshold for term, _ in rows], pa.float64()),
    }


def group_terms(columns: dict[str, list[Any]]) -> list[Term]:
    """Rows of `terms.parquet` to terms, of which each may have several."""
    if "spellings" not in columns:
        return _group_spellings(columns)
    names = ("term", "term_id", "language", "spellings", "pronunciations", "weight", "threshold")
    terms: list[Term] = []
    for owner, identity, language, (text, *aliases), said, weight, threshold in zip(
        *(columns[name] for name in names), strict=True
    ):
        if owner == len(terms):
            terms.append(Term(text, identity, tuple(aliases), language, tuple(said), weight, threshold))
    return terms


def _group_spellings(columns: dict[str, list[Any]]) -> list[Term]:
    """Rows of an earlier index: a term's first row is the spelling to show, the others are its aliases."""
    spellings: list[list[str]] = []
    of_term: list[tuple[int, str | None]] = []
    languages = columns.get("language") or [None] * len(columns["term"])  # earlier indexes have no such column
    rows = zip(columns["spelling"], columns["term"], columns["term_id"], languages, strict=True)
    for spelling, owner, identity, language in rows:
        if owner == len(spellings):
            spellings.append([])
            of_term.append((identity, language))
        spellings[owner].append(spelling)
    return [
        Term(text, identity, tuple(aliases), language)
        for (text, *aliases), (identity, language) in zip(spellings, of_term, strict=True)
    ]
