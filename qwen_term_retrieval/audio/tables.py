"""The rows of a pack: what they hold in all, their types, one Parquet table a split, and the dataset card."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import numpy as np
import pyarrow as pa
import xxhash
from pyarrow import parquet

from qwen_term_retrieval.audio.atomic import atomic_file
from qwen_term_retrieval.audio.feature import MmapAudio
from qwen_term_retrieval.audio.keys import keys_name, write_keys
from qwen_term_retrieval.audio.parts import read_part
from qwen_term_retrieval.audio.sealing import clips_of_parts, index_name
from qwen_term_retrieval.audio.shards import ShardHeader, ShardIndex
from qwen_term_retrieval.audio.utterance import CorpusError, split_rank

ROWS_PER_GROUP = 8192


@dataclass
class SplitTotals:
    """Counts of one split; `duration_s` in seconds."""

    num_clips: int = 0
    num_no_term_clips: int = 0
    duration_s: float = 0.0


def split_totals(increments: Sequence[Mapping[str, Any]]) -> dict[str, SplitTotals]:
    """Totals of each split over the increments of a `pack.json`, train first."""
    totals: dict[str, SplitTotals] = {}
    for increment in increments:
        for split, of_split in increment["splits"].items():
            sums = totals.setdefault(split, SplitTotals())
            for name in vars(sums):
                setattr(sums, name, getattr(sums, name) + of_split[name])
    return {split: totals[split] for split in sorted(totals, key=split_rank)}


@dataclass
class Survey:
    """What one pass over the rows of all parts finds, before anything is written."""

    pack_uuid: uuid.UUID = field(default_factory=lambda: uuid.UUID(int=0))
    extra_schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    splits: dict[str, SplitTotals] = field(default_factory=dict)
    num_clipped_samples: int = 0
    problems: list[dict[str, str]] = field(default_factory=list)


def survey_parts(parts: Path, num_parts: int, sampling_rate: int) -> Survey:
    """Totals, the types of the extra columns, and the pack's uuid: a digest of every row, with length and CRC.

    Raises:
        CorpusError: where a column holds values of types that do not go together.
    """
    survey, digest, schemas = Survey(), xxhash.xxh3_128(str(sampling_rate).encode()), {}
    for number in range(num_parts):
        part = read_part(parts, number)
        survey.problems += part["problems"]
        for clip in part["clips"]:
            digest.update(json.dumps(clip, sort_keys=True).encode())
            totals = survey.splits.setdefault(clip["split"], SplitTotals())
            totals.num_clips += 1
            totals.num_no_term_clips += not clip["terms"]
            totals.duration_s += clip["duration"]
            survey.num_clipped_samples += clip["clipped"]
        schema = schema_of_extras([clip["extra"] for clip in part["clips"]])
        schemas[schema.to_string()] = schema
    survey.extra_schema = unified_extras(list(schemas.values()))
    survey.pack_uuid = uuid.UUID(bytes=digest.digest())
    survey.splits = {split: survey.splits[split] for split in sorted(survey.splits, key=split_rank)}
    return survey


def schema_of_extras(rows: Sequence[Mapping[str, Any]]) -> pa.Schema:
    names = dict.fromkeys(name for row in rows for name in row)
    fields = []
    for name in names:
        try:
            fields.append(pa.field(name, pa.array([row.get(name) for row in rows]).type))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise CorpusError(f"column {name!r} mixes types ({error}); give all its rows one type") from error
    return pa.schema(fields)


def unified_extras(schemas: list[pa.Schema]) -> pa.Schema:
    try:
        unified = pa.unify_schemas(schemas, promote_options="permissive") if schemas else pa.schema([])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise CorpusError(f"a column mixes types ({error}); give all its rows one type") from error
    return unified


def row_features(sampling_rate: int, extra_schema: pa.Schema) -> datasets.Features:
    """The row schema of every pack, then the corpus' own columns.

    `term_starts` and `term_ends` are as long as `terms`, in seconds within the clip, null where unknown. The lists
    themselves are never null: the numpy and torch formats of datasets 5.2 fail on a batch that opens with such a row.
    """
    string, seconds = datasets.Value("string"), datasets.Value("float32")
    return datasets.Features(
        {
            "audio": MmapAudio(sampling_rate),
            "key": string,
            "text": string,
            "terms": datasets.List(string),
            "term_starts": datasets.List(seconds),
            "term_ends": datasets.List(seconds),
            "speaker": string,
            "language": string,
            "duration": seconds,
            **datasets.Features.from_arrow_schema(extra_schema),
        }
    )


def table_name(split: str, increment: int) -> str:
    return f"{split}-{increment:05d}.parquet"


def united_schema(schemas: Sequence[pa.Schema], sampling_rate: int) -> pa.Schema:
    """One schema for the tables of several increments: the columns of all, numbers of mixed types promoted.

    Raises:
        ValueError: a column has types that do not go together.
    """
    try:
        united = pa.unify_schemas([schema.remove_metadata() for schema in schemas], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"a column has types that do not go together: {error}") from error
    of_every_pack = row_features(sampling_rate, pa.schema([]))
    return row_features(
        sampling_rate, pa.schema([field for field in united if field.name not in of_every_pack])
    ).arrow_schema


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows of one increment under the schema of all: columns that the increment lacks are null."""
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def write_tables(
    parts: Path, num_parts: int, pack: Path, headers: Sequence[ShardHeader], survey: Survey, sampling_rate: int
) -> None:
    """Write a Parquet file a split; rows keep the corpus' order."""
    schema = row_features(sampling_rate, survey.extra_schema).arrow_schema
    places = _places(pack, headers)
    no_extras = dict.fromkeys(survey.extra_schema.names)
    splits = list(survey.splits)
    keys, split_of, row_of, shard, offset, length = [], [], [], [], [], []
    num_rows = dict.fromkeys(splits, 0)
    with ExitStack() as stack:
        tables = {
            split: _Table(stack.enter_context(atomic_file(pack / table_name(split, 0))), schema) for split in splits
        }
        for clip in clips_of_parts(parts, num_parts):
            # Nulls first: a corpus may have a column "length" of its own, and rows without it.
            place = next(places)
            tables[clip["split"]].add({"audio": place, **clip, **no_extras, **clip["extra"]})
            keys.append(clip["key"])
            split_of.append(splits.index(clip["split"]))
            row_of.append(num_rows[clip["split"]])
            num_rows[clip["split"]] += 1
            for column, value in zip((shard, offset, length), place.values(), strict=True):
                column.append(value)
        for table in tables.values():
            table.close()
    write_keys(
        pack / keys_name(0),
        keys,
        splits=splits,
        split=np.array(split_of),
        row=np.array(row_of),
        shard=np.array(shard),
        offset=np.array(offset),
        length=np.array(length),
    )


def _places(pack: Path, headers: Sequence[ShardHeader]) -> Iterator[dict[str, int]]:
    for number, header in enumerate(headers):
        index = ShardIndex.load(pack / index_name(number))
        for offset, length in zip(index.offset.tolist(), index.length.tolist(), strict=True):
            yield {"shard": header.uid, "offset": offset, "length": length}


class _Table:
    """A Parquet file written a row group at a time."""

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._writer = parquet.ParquetWriter(file, schema, compression="zstd")

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append({name: row.get(name) for name in self._schema.names})
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


def write_card(pack: Path, survey: Survey) -> None:
    """The dataset card; its `configs:` name the shards, so that `load_dataset(pack)` reaches our builder."""
    files = "".join(f"  - split: {split}\n    path: shard_*.dat\n" for split in survey.splits)
    rows = "".join(
        f"| {split} | {totals.num_clips} | {totals.num_no_term_clips} | {totals.duration_s / 3600:.2f} |\n"
        for split, totals in survey.splits.items()
    )
    card = (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}tags:\n- audio\n- term-retrieval\n---\n"
        "# Packed speech for term retrieval\n\n"
        "```python\nimport qwen_term_retrieval  # registers the feature and the builder\n"
        'from datasets import load_dataset\n\nrows = load_dataset("path/to/this/folder")\n```\n\n'
        f"| split | clips | of these without a term | hours |\n|---|---|---|---|\n{rows}"
    )
    with atomic_file(pack / "README.md") as file:
        file.write(card.encode())
