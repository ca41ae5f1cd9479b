"""The rows of all parts: what they hold together; then a Parquet table a split, the key index and the dataset card."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import xxhash
from pyarrow import parquet

from qwen_term_retrieval.corpora.utterance import checked_split, split_rank
from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.packs.feature import REFERENCE_TYPE
from qwen_term_retrieval.packs.format.key_index import keys_name, write_keys
from qwen_term_retrieval.packs.format.shards import ShardHeader, ShardIndex, index_name
from qwen_term_retrieval.packs.row_schema import (
    CARD,
    ROW_COLUMNS,
    SplitTotals,
    conformed,
    row_features,
    table_name,
    unified_extras,
    united_schema,
)
from qwen_term_retrieval.packs.writing.parts import EXTRA, Part, read_part
from qwen_term_retrieval.storage.atomic import atomic_file

ROWS_PER_GROUP = 8192


class RowSummary:
    """Totals, problems, columns and digest of the rows of all parts, which are added one after another.

    `beside` is the schema of the pack that they are to be appended to.
    """

    def __init__(self, sampling_rate: int, *, beside: pa.Schema | None = None) -> None:
        self._beside = beside
        self.num_parts = 0
        self.num_clipped_samples = 0
        self.problems: list[dict[str, str]] = []
        self._sampling_rate = sampling_rate
        self._splits: dict[str, SplitTotals] = {}
        # Whole samples: sums of seconds would depend on the order of summing.
        self._num_samples: Counter[str] = Counter()
        self._digest = xxhash.xxh3_128(str(sampling_rate).encode())
        self._extra_schemas: dict[str, pa.Schema] = {}

    def add(self, part: Part) -> None:
        """Count in the next part.

        Raises:
            CorpusError: a column holds values of types that do not go together with those before, or a name that is
                none for a split.
        """
        self._add_columns(_extra_schema(part.rows.schema))
        self.num_parts += 1
        self.problems += part.problems
        self.num_clipped_samples += int(part.array("clipped").sum())
        self._digest.update(part.array("digest").astype("<u8").tobytes())
        lengths = part.array("length")
        num_terms = part.rows.column("terms").value_lengths().to_numpy()
        for split, rows in rows_of_splits(part.rows):
            checked_split(split, f"utterance {part.rows.column('key')[int(rows[0])]}")
            totals = self._splits.setdefault(split, SplitTotals())
            totals.num_clips += len(rows)
            totals.num_no_term_clips += int(np.count_nonzero(num_terms[rows] == 0))
            self._num_samples[split] += int(lengths[rows].sum())
            totals.duration_s = self._num_samples[split] / self._sampling_rate

    def _add_columns(self, extra: pa.Schema) -> None:
        if extra.to_string() in self._extra_schemas:
            return
        self._extra_schemas[extra.to_string()] = extra
        schema = self.schema()
        if self._beside is not None:
            try:
                united_schema([self._beside, schema], self._sampling_rate)
            except ValueError as error:
                raise CorpusError(f"{error}. Give the corpus the column types of the pack") from error

    @property
    def splits(self) -> dict[str, SplitTotals]:
        return {split: self._splits[split] for split in sorted(self._splits, key=split_rank)}

    @property
    def uuid(self) -> uuid.UUID:
        """Follows from every row and sample."""
        return uuid.UUID(bytes=self._digest.digest())

    def schema(self) -> pa.Schema:
        """Arrow schema of the tables."""
        extra = unified_extras(list(self._extra_schemas.values()))
        return row_features(self._sampling_rate, extra).arrow_schema


def rows_of_splits(rows: pa.RecordBatch) -> Iterator[tuple[str, np.ndarray]]:
    """Each split that rows of a part are in, with the numbers of these rows."""
    splits = rows.column("split").dictionary_encode()
    for number, split in enumerate(splits.dictionary.to_pylist()):
        yield split, np.flatnonzero(splits.indices.to_numpy() == number)


def _extra_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema(
        [column.with_name(column.name[len(EXTRA) :]) for column in schema if column.name.startswith(EXTRA)]
    )


def write_tables(
    parts: Path, pack: Path, headers: Sequence[ShardHeader], summary: RowSummary, increment: int, first_shard: int
) -> None:
    """Write a Parquet file a split, whose rows keep the corpus' order, and the key index."""
    schema, splits = summary.schema(), list(summary.splits)
    places, index = _Places(pack, headers, first_shard), _Index(splits)
    with ExitStack() as stack:
        tables = {
            split: _Table(stack.enter_context(atomic_file(pack / table_name(split, increment))), schema)
            for split in splits
        }
        for number in range(summary.num_parts):
            rows = read_part(parts, number).rows
            placed = places.take(rows.num_rows)
            table = _under_schema(rows, placed, schema)
            for split, chosen in rows_of_splits(rows):
                tables[split].add(table if len(chosen) == len(table) else table.take(pa.array(chosen)))
            index.add(rows, placed)
        for each in tables.values():
            each.close()
    index.write(pack / keys_name(increment))


def _under_schema(rows: pa.RecordBatch, placed: pa.StructArray, schema: pa.Schema) -> pa.Table:
    """Rows of a part as the table has them: without what only packing needs, columns they lack null."""
    columns = {"audio": placed}
    for column in schema:
        # A corpus may have a column "length" of its own, and rows without it.
        name = column.name if column.name in ROW_COLUMNS else f"{EXTRA}{column.name}"
        if name in rows.schema.names:
            columns[column.name] = rows.column(name)
    return conformed(pa.table(columns), schema)


class _Places:
    """Where the clips of a pack lie, in order, read from the indexes of its shards."""

    def __init__(self, pack: Path, headers: Sequence[ShardHeader], first_shard: int) -> None:
        self._shards = ((pack / index_name(number), header.uid) for number, header in enumerate(headers, first_shard))
        self._waiting = np.zeros((3, 0), np.int64)

    def take(self, count: int) -> pa.StructArray:
        """Uid of the shard, offset and length in samples of the next `count` clips."""
        while self._waiting.shape[1] < count:
            path, uid = next(self._shards)
            index = ShardIndex.load(path)
            shard = np.stack([np.full(len(index), uid), index.offset, index.length])
            self._waiting = np.concatenate([self._waiting, shard], axis=1)
        taken, self._waiting = self._waiting[:, :count], self._waiting[:, count:]
        return pa.StructArray.from_arrays([pa.array(values) for values in taken], fields=list(REFERENCE_TYPE))


class _Index:
    """Collects the columns of the key index."""

    def __init__(self, splits: list[str]) -> None:
        self._splits = splits
        self._num_rows = dict.fromkeys(splits, 0)
        self._keys: list[pa.Array] = []
        self._numbers: list[np.ndarray] = []

    def add(self, rows: pa.RecordBatch, placed: pa.StructArray) -> None:
        split_and_row = np.empty((2, rows.num_rows), np.int64)
        for split, chosen in rows_of_splits(rows):
            first = self._num_rows[split]
            split_and_row[:, chosen] = [
                np.full(len(chosen), self._splits.index(split)),
                np.arange(first, first + len(chosen)),
            ]
            self._num_rows[split] += len(chosen)
        self._keys.append(rows.column("key"))
        self._numbers.append(np.stack([*split_and_row, *(values.to_numpy() for values in placed.flatten())]))

    def write(self, path: Path) -> None:
        names = ("split", "row", "shard", "offset", "length")
        columns = dict(zip(names, np.concatenate(self._numbers, axis=1), strict=True))
        write_keys(path, pa.chunked_array(self._keys), splits=self._splits, **columns)


class _Table:
    """A Parquet file written in row groups of one size, however the rows come."""

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        self._rows = schema.empty_table()
        self._writer = parquet.ParquetWriter(file, schema, compression="zstd")

    def add(self, rows: pa.Table) -> None:
        self._rows = pa.concat_tables([self._rows, rows])
        while len(self._rows) >= ROWS_PER_GROUP:
            self._write(self._rows.slice(0, ROWS_PER_GROUP))
            self._rows = self._rows.slice(ROWS_PER_GROUP)

    def _write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows.combine_chunks())

    def close(self) -> None:
        if len(self._rows):
            self._write(self._rows)
        self._writer.close()


def write_card(pack: Path, totals: Mapping[str, SplitTotals]) -> None:
    """Write the dataset card.

    Its `configs:` name the shards, so that `load_dataset(pack)` reaches our builder.
    """
    with atomic_file(pack / CARD) as file:
        file.write(dataset_card(totals).encode())


def dataset_card(totals: Mapping[str, SplitTotals]) -> str:
    """The text of a pack's `README.md`."""
    files = "".join(f"  - split: {split}\n    path: shard_*.dat\n" for split in totals)
    rows = "".join(
        f"| {split} | {each.num_clips} | {each.num_no_term_clips} | {each.duration_s / 3600:.2f} |\n"
        for split, each in totals.items()
    )
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}tags:\n- audio\n- term-retrieval\n---\n"
        "# Packed speech for term retrieval\n\n"
        "```python\nimport qwen_term_retrieval  # registers the feature and the builder\n"
        'from datasets import load_dataset\n\nrows = load_dataset("path/to/this/folder")\n```\n\n'
        f"| split | clips | of these without a term | hours |\n|---|---|---|---|\n{rows}"
    )
