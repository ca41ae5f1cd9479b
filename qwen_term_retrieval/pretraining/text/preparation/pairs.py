"""Rows of CSV, TSV, JSON lists, JSON Lines and Parquet as pairs of prompt and response, one at a time.

A row that cannot be used is given as a `BadRow` in its place, so that whoever reads decides what one costs. A file is
read in blocks, whatever its size; a JSON list through ijson, which never holds more than a row of it. Bytes that are no
UTF-8 become a mark that no text may hold (U+FFFE), by which their row is known, and the rows around it are read.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import ijson

from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.pretraining.text.preparation.parquet import parquet_batches, rows_of_batch

COLUMNS = ("prompt", "response")
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
# Cells above it are taken for a quote that was not closed.
MAX_CELL_CHARS = 1 << 24
_MARK = "\ufffe"
_BLOCK_BYTES = 1 << 16


class Pair(NamedTuple):
    prompt: str
    response: str


class BadRow(NamedTuple):
    """A row that is no pair: where it stands, a reason to count it by, and what was found."""

    where: str
    reason: str
    found: str


def read_pairs(path: Path, columns: Mapping[str, str] | None = None) -> Iterator[Pair | BadRow]:
    """The rows of a file, whose suffix says how it is read; `.gz` behind it, too, but for Parquet.

    Args:
        columns: what the file calls `prompt` and `response`, where it does otherwise: `{"prompt": "question"}`.

    Raises:
        CorpusError: no such kind of file, no such column, or damage after which no row can be found.

    Example:
        >>> for row in read_pairs(Path("faq.csv"), {"prompt": "question", "response": "answer"}):  # doctest: +SKIP
        ...     print(row.reason if isinstance(row, BadRow) else row.prompt)
    """
    names = [(columns or {}).get(column, column) for column in COLUMNS]
    for where, row in _rows_of(path)(path, names):
        yield row if isinstance(row, BadRow) else _checked(where, row, names)


def named_columns(said: Iterable[str]) -> dict[str, str]:
    """What files call our columns, from flags.

    >>> named_columns(["prompt=question", "response=answer"])
    {'prompt': 'question', 'response': 'answer'}
    """
    columns = {}
    for one in said:
        ours, _, theirs = one.partition("=")
        if ours not in COLUMNS or not theirs:
            raise ValueError(f"--column {one!r} is no OURS=THEIRS; write prompt=question or response=answer")
        columns[ours] = theirs
    return columns


def is_pairs_file(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(SUFFIXES)


def _rows_of(path: Path) -> Callable[[Path, list[str]], Iterator[tuple[str, Any]]]:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        return _csv_rows
    if name.endswith((".jsonl", ".ndjson")):
        return _json_lines
    if name.endswith(".json"):
        return _json_list if _first_byte(path) == b"[" else _json_lines
    if name.endswith(".parquet"):
        return _parquet_rows
    raise CorpusError(f"{path}: no kind of file that is read; those are {', '.join(SUFFIXES)}")


def _checked(where: str, row: Any, names: list[str]) -> Pair | BadRow:
    if not isinstance(row, dict):
        return BadRow(where, "not an object", str(row)[:40])
    texts = []
    for name in names:
        text = row.get(name)
        if text is None:
            return BadRow(where, f"no {name}", "null" if name in row else f"it has {', '.join(map(str, row))}"[:80])
        if not isinstance(text, str):
            return BadRow(where, f"{name} is no text", str(text)[:40])
        if not text.strip():
            return BadRow(where, f"{name} is empty", repr(text)[:40])
        if _MARK in text or not _is_unicode(text):
            return BadRow(where, "not UTF-8", f"{name}: {text[:40]!r}")
        texts.append(text)
    return Pair(*texts)


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON can escape half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv_rows(path: Path, names: list[str]) -> Iterator[tuple[str, Any]]:
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    limit = csv.field_size_limit(MAX_CELL_CHARS)
    try:
        with (
            _opened(path) as raw,
            io.TextIOWrapper(io.BufferedReader(_Marked(raw)), encoding="utf-8", newline="") as lines,
        ):
            reader = csv.reader(lines, delimiter=delimiter)
            header = next(reader, [])
            _require(names, header, path)
            while True:
                where = f"{path}, line {reader.line_num + 1}"
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield where, BadRow(where, "not CSV", str(error))
                    continue
                if len(cells) == len(header):
                    yield where, dict(zip(header, cells, strict=True))
                elif cells:
                    found = f"{len(cells)} cells under a header of {len(header)}"
                    yield where, BadRow(where, "wrong number of cells", found)
    finally:
        csv.field_size_limit(limit)


def _json_lines(path: Path, _names: list[str]) -> Iterator[tuple[str, Any]]:
    with _opened(path) as raw:
        for number, line in enumerate(io.BufferedReader(_Marked(raw)), start=1):
            where = f"{path}, line {number}"
            if line.strip():
                try:
                    yield where, json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield where, BadRow(where, "not JSON", str(error))


def _json_list(path: Path, _names: list[str]) -> Iterator[tuple[str, Any]]:
    number = 0
    with _opened(path) as raw:
        try:
            for number, row in enumerate(ijson.items(_Marked(raw), "item", use_float=True), start=1):
                yield f"{path}, row {number}", row
        except ijson.JSONError as error:
            raise CorpusError(
                f"{path}: damaged after row {number}: {' '.join(str(error).split())}. What follows cannot be read; "
                "mend the file, or cut the list there"
            ) from error


def _parquet_rows(path: Path, names: list[str]) -> Iterator[tuple[str, Any]]:
    rows = (row for batch in parquet_batches(path, names) for row in rows_of_batch(batch))
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        yield where, BadRow(where, "not UTF-8", "a cell") if row is None else dict(zip(names, row, strict=True))


def _require(names: Iterable[str], there: list[str], path: Path) -> None:
    for column, name in zip(COLUMNS, names, strict=True):
        if name not in there:
            raise CorpusError(
                f"{path}: no column {name!r}; it has {', '.join(there) or 'none'}. Say what it calls it: "
                f"columns={{'{column}': '{there[0] if there else 'NAME'}'}}"
            )


def _first_byte(path: Path) -> bytes:
    with _opened(path) as raw:
        return raw.read(_BLOCK_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()[:1]


def _opened(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path))
    return path.open("rb", buffering=_BLOCK_BYTES)


def _mark_bytes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return _MARK, error.end


codecs.register_error("qtr_mark", _mark_bytes)


class _Marked(io.RawIOBase):
    """The bytes of a file as UTF-8, without a byte order mark, and with `_MARK` for what is none."""

    def __init__(self, raw: BinaryIO):
        self._raw = raw
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="qtr_mark")
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = self._block()
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def _block(self) -> bytes:
        # A block may end within a character, and then decode to nothing.
        while block := self._raw.read(_BLOCK_BYTES):
            if text := self._decoder.decode(block):
                return text.encode()
        return self._decoder.decode(b"", final=True).encode()
