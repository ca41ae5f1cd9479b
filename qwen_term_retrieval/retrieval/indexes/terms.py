"""The terms of one part of an index as columns: some fifty bytes a term, opened in milliseconds, found by any spelling.

A spelling is looked up by the hash of what it is known by (`spelling_keys`), in a sorted column; what is found is
compared with the spelling itself, so that two spellings of one hash are told apart.

Shapes: T terms, R rows (spellings; those of a term stand side by side, the one to show first).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from qwen_term_retrieval.text.glossary import Term, normalize_term
from qwen_term_retrieval.text.languages import primary_language

COLUMNS = ("first_rows", "term_ids", "keys", "key_rows")
SPELLINGS = "spellings.arrow"
LANGUAGES = "languages.arrow"
EXTRAS = "extras.arrow"
_OWN_COLUMNS = ("text", "term_id", "aliases", "language")
# What else a term may say; few do.
_OTHERS = {field.name: field.default for field in fields(Term) if field.name not in _OWN_COLUMNS}


def spelling_key(spelling: str, language: str | None) -> str:
    """What a spelling is known by: as it is heard, and the language that it is in, without its region.

    No normalised spelling holds an "@".
    """
    primary = primary_language(language)
    normalized = normalize_term(spelling, language)
    return normalized if primary is None else f"{normalized}@{primary}"


def key_hash(key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode())


@dataclass(frozen=True, eq=False)
class TermTable(Sequence[Term]):
    """Terms, in order; it never changes.

    Args:
        spellings: string array (R,).
        languages: string array (T,), null where it is not known.
        extras: string array (T,): a JSON object of what else a term says, null where that is nothing.
        first_rows_T1: int32, rows of term t are `first_rows_T1[t] : first_rows_T1[t + 1]`.
        term_ids_T: int64.
        keys_R: uint64, ascending: hashes of `spelling_key`.
        key_rows_R: int32, the row that each belongs to.
    """

    spellings: pa.Array
    languages: pa.Array
    extras: pa.Array
    first_rows_T1: NDArray[np.int32]
    term_ids_T: NDArray[np.int64]
    keys_R: NDArray[np.uint64]
    key_rows_R: NDArray[np.int32]

    @classmethod
    def of(cls, terms: Sequence[Term], keys: Sequence[str] | None = None) -> TermTable:
        """A table of these terms; `keys` are those of all spellings, where they are known already."""
        if keys is None:
            keys = [spelling_key(spelling, term.language) for term in terms for spelling in term.spellings]
        counts_T = np.fromiter((1 + len(term.aliases) for term in terms), np.int32, len(terms))
        hashes_R = np.fromiter(map(key_hash, keys), np.uint64, len(keys))
        order_R = np.argsort(hashes_R, kind="stable")
        return cls(
            pa.array([spelling for term in terms for spelling in term.spellings], pa.large_string()),
            pa.array([term.language for term in terms], pa.string()),
            pa.array(map(_extra, terms), pa.string()) if _OTHERS else pa.nulls(len(terms), pa.string()),
            np.concatenate([[0], counts_T.cumsum()]).astype(np.int32),
            np.fromiter((term.term_id for term in terms), np.int64, len(terms)),
            hashes_R[order_R],
            order_R.astype(np.int32),
        )

    @classmethod
    def join(cls, tables: Sequence[TermTable], kept: Sequence[NDArray[np.bool_] | None]) -> TermTable:
        """One table of the terms that are kept (None: all) of several, in their order."""
        if len(tables) == 1 and kept[0] is None:
            return tables[0]
        parts = [_part(table, kept_T) for table, kept_T in zip(tables, kept, strict=True)]
        num_rows = np.cumsum([0, *(len(part.spellings) for part in parts)])
        keys_R = np.concatenate([part.keys_R for part in parts])
        rows_R = np.concatenate([part.key_rows_R + first for part, first in zip(parts, num_rows, strict=False)])
        order_R = np.lexsort((rows_R, keys_R))
        firsts = [part.first_rows_T1[:-1] + first for part, first in zip(parts, num_rows, strict=False)]
        return cls(
            pa.concat_arrays([part.spellings for part in parts]),
            pa.concat_arrays([part.languages for part in parts]),
            pa.concat_arrays([part.extras for part in parts]),
            np.concatenate([*firsts, num_rows[-1:]]).astype(np.int32),
            np.concatenate([part.term_ids_T for part in parts]),
            keys_R[order_R],
            rows_R[order_R].astype(np.int32),
        )

    def __len__(self) -> int:
        return len(self.term_ids_T)

    @property
    def num_rows(self) -> int:
        return len(self.spellings)

    @cached_property
    def most_spellings(self) -> int:
        return int(np.diff(self.first_rows_T1).max(initial=0))

    @cached_property
    def term_of_row(self) -> NDArray[np.int32]:
        if self.num_rows == len(self):
            return np.arange(len(self), dtype=np.int32)
        return np.arange(len(self), dtype=np.int32).repeat(np.diff(self.first_rows_T1))

    @cached_property
    def known_languages(self) -> tuple[str, ...]:
        """The languages, without regions, that any term names."""
        named = self.languages.unique().to_pylist()
        return tuple(sorted({primary for each in named if (primary := primary_language(each)) is not None}))

    @overload
    def __getitem__(self, place: int) -> Term: ...

    @overload
    def __getitem__(self, place: slice) -> list[Term]: ...

    def __getitem__(self, place: int | slice) -> Term | list[Term]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        first, end = int(self.first_rows_T1[place]), int(self.first_rows_T1[place + 1])
        text, *aliases = self.spellings.slice(first, end - first).to_pylist()
        extra = self.extras[place].as_py()
        return _term(text, int(self.term_ids_T[place]), aliases, self.languages[place].as_py(), extra)

    def __iter__(self) -> Iterator[Term]:
        texts, languages = self.spellings.to_pylist(), self.languages.to_pylist()
        firsts, ids, extras = self.first_rows_T1.tolist(), self.term_ids_T.tolist(), self.extras.to_pylist()
        for place, identity in enumerate(ids):
            text, *aliases = texts[firsts[place] : firsts[place + 1]]
            yield _term(text, identity, aliases, languages[place], extras[place])

    def rows_of(self, mask_T: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask of terms as one of rows."""
        return mask_T if self.num_rows == len(self) else mask_T[self.term_of_row]

    def find(self, key: str, removed_T: NDArray[np.bool_] | None = None) -> int | None:
        """The first term that has a spelling of this key and is not removed; None where there is none."""
        (found,) = self.find_all([key], np.array([key_hash(key)], np.uint64), removed_T)
        return found

    def find_all(
        self, keys: Sequence[str], hashes: NDArray[np.uint64], removed_T: NDArray[np.bool_] | None = None
    ) -> list[int | None]:
        """`find` of many."""
        found: list[int | None] = [None] * len(keys)
        if not self.num_rows:
            return found
        firsts = np.searchsorted(self.keys_R, hashes)
        inside = firsts < self.num_rows
        inside[inside] = self.keys_R[firsts[inside]] == hashes[inside]
        for number in np.flatnonzero(inside).tolist():
            found[number] = self._first_at(int(firsts[number]), keys[number], removed_T)
        return found

    def _first_at(self, first: int, key: str, removed_T: NDArray[np.bool_] | None) -> int | None:
        hashed = self.keys_R[first]
        while first < self.num_rows and self.keys_R[first] == hashed:
            row = int(self.key_rows_R[first])
            place = int(np.searchsorted(self.first_rows_T1, row, side="right")) - 1
            there = removed_T is None or not removed_T[place]
            if there and spelling_key(self.spellings[row].as_py(), self.languages[place].as_py()) == key:
                return place
            first += 1
        return None

    # ---- on disk ----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the columns into a folder that is there."""
        for name in COLUMNS:
            np.save(folder / f"{name}.npy", getattr(self, _field(name)))
        for name, column in ((SPELLINGS, self.spellings), (LANGUAGES, self.languages), (EXTRAS, self.extras)):
            table = pa.table({"value": column})
            with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)

    @classmethod
    def open(cls, folder: Path) -> TermTable:
        """Open what `save` wrote; the columns stay on disk until they are asked for.

        Raises:
            OSError, ValueError: a file is missing or is none of ours; `pyarrow.ArrowInvalid` is a ValueError.
        """
        arrays: dict[str, Any] = {_field(name): np.load(folder / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
        return cls(*(_read_column(folder / name) for name in (SPELLINGS, LANGUAGES, EXTRAS)), **arrays)


def _field(name: str) -> str:
    return {"first_rows": "first_rows_T1", "term_ids": "term_ids_T", "keys": "keys_R", "key_rows": "key_rows_R"}[name]


def _read_column(path: Path) -> pa.Array:
    column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column("value")
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _part(table: TermTable, kept_T: NDArray[np.bool_] | None) -> TermTable:
    """The terms that are kept, in memory."""
    if kept_T is None:
        return table
    kept_R = table.rows_of(kept_T)
    row_now_R = (np.cumsum(kept_R) - 1).astype(np.int32)
    kept_keys_R = kept_R[table.key_rows_R]
    counts_T = np.diff(table.first_rows_T1)[kept_T]
    mask_R, mask_T = pa.array(kept_R), pa.array(kept_T)
    return TermTable(
        table.spellings.filter(mask_R),
        table.languages.filter(mask_T),
        table.extras.filter(mask_T),
        np.concatenate([[0], counts_T.cumsum()]).astype(np.int32),
        np.asarray(table.term_ids_T)[kept_T],
        np.asarray(table.keys_R)[kept_keys_R],
        row_now_R[table.key_rows_R[kept_keys_R]],
    )


def _extra(term: Term) -> str | None:
    said = {name: value for name, default in _OTHERS.items() if (value := getattr(term, name)) != default}
    return json.dumps(said, ensure_ascii=False) if said else None


def _term(text: str, identity: int, aliases: Sequence[str], language: str | None, extra: str | None) -> Term:
    if extra is None:
        return Term(text, identity, tuple(aliases), language)
    others = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(extra).items()}
    return Term(text, identity, tuple(aliases), language, **others)
