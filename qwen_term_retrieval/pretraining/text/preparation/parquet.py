"""Pairs into Parquet and out of it, a batch at a time.

`ParquetFile.iter_batches` stays flat; `Dataset.to_batches` was seen to grow with the file (arrow issue 39808).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from pyarrow import parquet

from qwen_term_retrieval.errors import CorpusError

SCHEMA = pa.schema([("prompt", pa.string()), ("response", pa.string())])
_ROWS_PER_BATCH = 1024
_ROWS_PER_GROUP = 1 << 14
_CHARS_PER_GROUP = 1 << 22
_BUFFER_BYTES = 1 << 18


def open_parquet(path: Path) -> parquet.ParquetFile:
    """Open a Parquet file so that its rows can be read in blocks.

    Raises:
        CorpusError: it is none.
    """
    try:
        # Without these two settings a whole row group is read at once.
        return parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise CorpusError(f"{path}: not readable as Parquet: {error}") from error


def num_rows(path: Path) -> int:
    with open_parquet(path) as file:
        return file.metadata.num_rows


def parquet_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a file, about a thousand at a time, with the columns in the order that is asked for.

    Raises:
        CorpusError: a column that is not there, or damage.
    """
    with open_parquet(path) as file:
        there = file.schema_arrow.names
        for name in columns:
            if name not in there:
                raise CorpusError(f"{path}: no column {name!r}; it has {', '.join(there)}. Convert it first")
        row = 0
        try:
            for batch in file.iter_batches(_ROWS_PER_BATCH, columns=list(columns), use_threads=False):
                row += len(batch)
                yield batch.select(list(columns))  # they come in the order of the file
        except (pa.ArrowInvalid, OSError) as error:
            raise CorpusError(f"{path}, after row {row}: damaged Parquet: {error}") from error


def rows_of_batch(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...] | None]:
    """The cells of each row, in the order of the columns; None in the place of one with a text that is no UTF-8."""
    try:
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
    except UnicodeDecodeError:  # of a whole column, so before the first row
        yield from (_row(batch, number) for number in range(len(batch)))


def _row(batch: pa.RecordBatch, number: int) -> tuple[Any, ...] | None:
    try:
        return tuple(column[number].as_py() for column in batch.columns)
    except UnicodeDecodeError:
        return None


class PairWriter:
    """Writes pairs to an open file, in row groups of some megabytes, within a `with` block."""

    def __init__(self, file: IO[bytes]):
        self.num_rows = 0
        self._writer = parquet.ParquetWriter(file, SCHEMA, compression="zstd")
        self._prompts: list[str] = []
        self._responses: list[str] = []
        self._num_chars = 0

    def write(self, prompt: str, response: str) -> None:
        self._prompts.append(prompt)
        self._responses.append(response)
        self._num_chars += len(prompt) + len(response)
        self.num_rows += 1
        if len(self._prompts) >= _ROWS_PER_GROUP or self._num_chars >= _CHARS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._prompts:
            self._writer.write_table(pa.table([self._prompts, self._responses], SCHEMA))
            self._prompts, self._responses, self._num_chars = [], [], 0

    def __enter__(self) -> PairWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Closed after an error too: pyarrow would do it later, and complain that the file is closed.
        if kind is None:
            self._flush()
        self._writer.close()
