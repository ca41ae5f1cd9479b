"""Documents out of Parquet and JSON Lines files, one at a time: a document is one text a column.

Files are read in blocks, whatever their size. What a file is named after, its suffix, says how it is read.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from qwen_term_retrieval.corpora.locations import walk
from qwen_term_retrieval.errors import CorpusError

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_USUAL_COLUMNS = (("text",), ("prompt", "response"))
_ROWS_PER_BATCH = 128
_BUFFER_BYTES = 1 << 20


class Document(NamedTuple):
    """One text a column, the file and row (from 1) they stand in, and how much of the file is read with it (0 to 1).

    A text is None or "" where the row has none.
    """

    texts: tuple[str | None, ...]
    path: Path
    row: int
    progress: float


def text_files(source: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files of a source, folders searched to the bottom, in the order of their paths within each.

    Raises:
        FileNotFoundError: a path that does not exist.
        CorpusError: a file of another suffix, or a folder without any.
    """
    paths = [Path(source)] if isinstance(source, str | Path) else [Path(path) for path in source]
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give a file or folder of {', '.join(SUFFIXES)}")
        found = sorted(path / name for name in walk(path) if _is_text(name)) if path.is_dir() else [path]
        if not found or not _is_text(found[0].name):
            raise CorpusError(f"{path}: no file with a suffix that can be read; known are {', '.join(SUFFIXES)}")
        files += found
    return files


def _is_text(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def find_columns(path: Path, columns: Sequence[str] | None) -> tuple[str, ...]:
    """The columns to read: those given, or the usual ones that the first row of `path` has.

    Raises:
        CorpusError: the file has none of them; the message lists what it has.
    """
    if columns is not None:
        if isinstance(columns, str) or not columns:
            raise ValueError(f"columns={columns!r}; give a tuple of names, such as ('text',) or ('prompt', 'response')")
        return tuple(columns)
    names = _parquet_columns(path) if _is_parquet(path) else _first_row_columns(path)
    for usual in _USUAL_COLUMNS:
        if set(usual) <= set(names):
            return usual
    raise CorpusError(f"{path} has the columns {', '.join(names)}; name those that hold the text with columns=(…)")


def read_documents(path: Path, columns: tuple[str, ...]) -> Iterator[Document]:
    """The documents of one file.

    Raises:
        CorpusError: a column that is not there, a value that is no text, or a damaged file; names file and row.
    """
    rows = _parquet_rows(path, columns) if _is_parquet(path) else _json_rows(path)
    for row, values, progress in rows:
        missing = [column for column in columns if column not in values]
        if missing:
            raise CorpusError(f"{path}, row {row}: no column {missing[0]!r}; it has {', '.join(values)}")
        texts = tuple(values[column] for column in columns)
        for column, text in zip(columns, texts, strict=True):
            if text is not None and not isinstance(text, str):
                raise CorpusError(f"{path}, row {row}: column {column!r} holds {str(text)[:40]!r}, which is not text")
        yield Document(texts, path, row, progress)


def _is_parquet(path: Path) -> bool:
    return path.name.lower().endswith(".parquet")


def _open_parquet(path: Path) -> parquet.ParquetFile:
    try:
        # Without these two settings a whole row group is read at once.
        return parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise CorpusError(f"{path}: not readable as Parquet: {error}") from error


def _parquet_columns(path: Path) -> list[str]:
    with _open_parquet(path) as file:
        return file.schema_arrow.names


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any], float]]:
    with _open_parquet(path) as file:
        names, num_rows, row = file.schema_arrow.names, file.metadata.num_rows, 0
        missing = [column for column in columns if column not in names]
        if missing:
            raise CorpusError(f"{path}: no column {missing[0]!r}; it has {', '.join(names)}")
        try:
            for batch in file.iter_batches(_ROWS_PER_BATCH, columns=list(columns), use_threads=False):
                for values in batch.to_pylist():
                    row += 1
                    yield row, values, row / num_rows
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path}, in the {_ROWS_PER_BATCH} rows after {row}: a text is not UTF-8") from error
        except (pa.ArrowInvalid, OSError) as error:
            raise CorpusError(f"{path}, after row {row}: damaged Parquet: {error}") from error


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any], float]]:
    size = path.stat().st_size or 1
    with path.open("rb") as raw:
        lines = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
        number = 0
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _json_object(line, f"{path}, row {number}"), raw.tell() / size
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise CorpusError(f"{path}, after row {number}: damaged gzip: {error}") from error


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{where}: not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(values, dict):
        raise CorpusError(f"{where}: expected an object with a column a name, not {str(values)[:40]!r}")
    return values


def _first_row_columns(path: Path) -> list[str]:
    for _, values, _ in _json_rows(path):
        return list(values)
    raise CorpusError(f"{path} is empty")
