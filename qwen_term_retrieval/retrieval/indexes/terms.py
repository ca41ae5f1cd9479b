"""The terms of one part of an index as columns: some fifty bytes a term, opened in milliseconds, found by any spelling.

A spelling is looked up by the hash of what it is known by (`spelling_keys`), in a sorted column; what is found is
compared with the spelling itself, so that two spellings of one hash are told apart.

Shapes: T terms, R rows (the ways that a term is said; those of a term stand side by side), S spellings (those of a term
side by side, the one to show first).
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

from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.text.languages import primary_language
from qwen_term_retrieval.text.spellings import normalize_term

COLUMNS = ("first_rows", "first_spellings", "term_ids", "keys", "key_spellings")
_AXIS_OF = {"first_rows": "T1", "first_spellings": "T1", "term_ids": "T", "keys": "S", "key_spellings": "S"}
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
        spellings: string array (S,).
        languages: string array (T,), null where it is not known.
        extras: string array (T,): a JSON object of what else a term says, null where that is nothing.
        first_rows_T1: int32, the vectors of term t are `first_rows_T1[t] : first_rows_T1[t + 1]`.
        first_spellings_T1: int32, the same of spellings.
        term_ids_T: int64.
        keys_S: uint64, ascending: hashes of `spelling_key`.
        key_spellings_S: int32, the spelling that each belongs to.
    """

    spellings: pa.Array
    languages: pa.Array
    extras: pa.Array
    first_rows_T1: NDArray[np.int32]
    first_spellings_T1: NDArray[np.int32]
    term_ids_T: NDArray[np.int64]
    keys_S: NDArray[np.uint64]
    key_spellings_S: NDArray[np.int32]

    @classmethod
    def of(
        cls,
        terms: Sequence[Term],
        hashes_S: NDArray[np.uint64] | None = None,
        num_rows_T: NDArray[np.int32] | None = None,
    ) -> TermTable:
        """A table of these terms.

        Args:
            terms: in order.
            hashes_S: `key_hash` of all spellings, where they are known already.
            num_rows_T: how many vectors each term has; None: one for each way that it is said.
        """
        if hashes_S is None:
            keys = [spelling_key(spelling, term.language) for term in terms for spelling in term.spellings]
            hashes_S = np.fromiter(map(key_hash, keys), np.uint64, len(keys))
        if num_rows_T is None:
            num_rows_T = np.fromiter((len(term.sayings) for term in terms), np.int32, len(terms))
        order_S = np.argsort(hashes_S, kind="stable")
        return cls(
            pa.array([spelling for term in terms for spelling in term.spellings], pa.large_string()),
            pa.array([term.language for term in terms], pa.string()),
            pa.array(map(_extra, terms), pa.string()) if _OTHERS else pa.nulls(len(terms), pa.string()),
            _firsts(num_rows_T),
            _firsts(np.fromiter((1 + len(term.aliases) for term in terms), np.int32, len(terms))),
            np.fromiter((term.term_id for term in terms), np.int64, len(terms)),
            hashes_S[order_S],
            order_S.astype(np.int32),
        )

    @classmethod
    def join(cls, tables: Sequence[TermTable], kept: Sequence[NDArray[np.bool_] | None]) -> TermTable:
        """One table of the terms that are kept (None: all) of several, in their order."""
        if len(tables) == 1 and kept[0] is None:
            return tables[0]
        parts = [_part(table, kept_T) for table, kept_T in zip(tables, kept, strict=True)]
        firsts = np.cumsum([0, *(len(part.spellings) for part in parts)])
        keys_S = np.concatenate([part.keys_S for part in parts])
        spelling_S = np.concatenate([part.key_spellings_S + first for part, first in zip(parts, firsts, strict=False)])
        order_S = np.lexsort((spelling_S, keys_S))
        return cls(
            pa.concat_arrays([part.spellings for part in parts]),
            pa.concat_arrays([part.languages for part in parts]),
            pa.concat_arrays([part.extras for part in parts]),
            _firsts(np.concatenate([np.diff(part.first_rows_T1) for part in parts])),
            _firsts(np.concatenate([np.diff(part.first_spellings_T1) for part in parts])),
            np.concatenate([part.term_ids_T for part in parts]),
            keys_S[order_S],
            spelling_S[order_S].astype(np.int32),
        )

    def __len__(self) -> int:
        return len(self.term_ids_T)

    @property
    def num_rows(self) -> int:
        return int(self.first_rows_T1[-1])

    @cached_property
    def weights(self) -> NDArray[np.float64] | None:
        """The weight of each term; None where all are 1."""
        if self.extras.null_count == len(self):
            return None
        weights_T = np.ones(len(self))
        for place in np.flatnonzero(self.extras.is_valid().to_numpy(zero_copy_only=False)).tolist():
            weights_T[place] = json.loads(self.extras[place].as_py()).get("weight", 1.0)
        return None if (weights_T == 1).all() else weights_T

    @cached_property
    def most_rows(self) -> int:
        """Of any term."""
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
        first, end = int(self.first_spellings_T1[place]), int(self.first_spellings_T1[place + 1])
        text, *aliases = self.spellings.slice(first, end - first).to_pylist()
        extra = self.extras[place].as_py()
        return _term(text, int(self.term_ids_T[place]), aliases, self.languages[place].as_py(), extra)

    def __iter__(self) -> Iterator[Term]:
        texts, languages = self.spellings.to_pylist(), self.languages.to_pylist()
        firsts, ids, extras = self.first_spellings_T1.tolist(), self.term_ids_T.tolist(), self.extras.to_pylist()
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
        if not len(self.keys_S):
            return found
        firsts = np.searchsorted(self.keys_S, hashes)
        inside = firsts < len(self.keys_S)
        inside[inside] = self.keys_S[firsts[inside]] == hashes[inside]
        for number in np.flatnonzero(inside).tolist():
            found[number] = self._first_at(int(firsts[number]), keys[number], removed_T)
        return found

    def _first_at(self, first: int, key: str, removed_T: NDArray[np.bool_] | None) -> int | None:
        hashed = self.keys_S[first]
        while first < len(self.keys_S) and self.keys_S[first] == hashed:
            number = int(self.key_spellings_S[first])
            place = int(np.searchsorted(self.first_spellings_T1, number, side="right")) - 1
            there = removed_T is None or not removed_T[place]
            if there and spelling_key(self.spellings[number].as_py(), self.languages[place].as_py()) == key:
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
    return f"{name}_{_AXIS_OF[name]}"


def _firsts(counts_T: NDArray[np.int32]) -> NDArray[np.int32]:
    """Where those of each term begin, and where the last end."""
    return np.concatenate([[0], counts_T.cumsum()]).astype(np.int32)


def _read_column(path: Path) -> pa.Array:
    column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column("value")
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _part(table: TermTable, kept_T: NDArray[np.bool_] | None) -> TermTable:
    """The terms that are kept, in memory."""
    if kept_T is None:
        return table
    counts_T = np.diff(table.first_spellings_T1)
    kept_S = kept_T.repeat(counts_T)
    now_S = (np.cumsum(kept_S) - 1).astype(np.int32)
    kept_keys_S = kept_S[table.key_spellings_S]
    mask_T = pa.array(kept_T)
    return TermTable(
        table.spellings.filter(pa.array(kept_S)),
        table.languages.filter(mask_T),
        table.extras.filter(mask_T),
        _firsts(np.diff(table.first_rows_T1)[kept_T]),
        _firsts(counts_T[kept_T]),
        np.asarray(table.term_ids_T)[kept_T],
        np.asarray(table.keys_S)[kept_keys_S],
        now_S[table.key_spellings_S[kept_keys_S]],
    )


def _extra(term: Term) -> str | None:
    said = {name: value for name, default in _OTHERS.items() if (value := getattr(term, name)) != default}
    return json.dumps(said, ensure_ascii=False) if said else None


def _term(text: str, identity: int, aliases: Sequence[str], language: str | None, extra: str | None) -> Term:
    if extra is None:
        return Term(text, identity, tuple(aliases), language)
    others: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(extra).items()
    }
    return Term(text, identity, tuple(aliases), language, **others)
