"""The rows of a pack: the columns that each has, those that a corpus adds, and one schema for tables that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa

from qwen_term_retrieval.corpora.utterance import split_rank
from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.packs.feature import MmapAudio

CARD = "README.md"
_STRING, _SECONDS = datasets.Value("string"), datasets.Value("float32")
# `term_starts` and `term_ends` are as long as `terms`, in seconds within the clip, null where unknown. The lists
# themselves are never null: the numpy and torch formats of datasets 5.2 fail on a batch that opens with such a row.
_FEATURES = {
    "key": _STRING,
    "text": _STRING,
    "terms": datasets.List(_STRING),
    "term_starts": datasets.List(_SECONDS),
    "term_ends": datasets.List(_SECONDS),
    "speaker": _STRING,
    "language": _STRING,
    "duration": _SECONDS,
}
# Arrow types of what stands in every row beside `audio`.
ROW_COLUMNS: dict[str, pa.DataType] = {column.name: column.type for column in datasets.Features(_FEATURES).arrow_schema}


def row_features(sampling_rate: int, extra_schema: pa.Schema) -> datasets.Features:
    """The row schema of every pack, then the corpus' own columns."""
    extra = datasets.Features.from_arrow_schema(extra_schema)
    return datasets.Features({"audio": MmapAudio(sampling_rate), **_FEATURES, **extra})


def unified_extras(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """One schema for the extra columns of all rows, numbers of mixed types promoted.

    Raises:
        CorpusError: a column has types that do not go together.
    """
    try:
        return pa.unify_schemas(list(schemas), promote_options="permissive") if schemas else pa.schema([])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise CorpusError(f"a column mixes types ({error}); give all its rows one type") from error


def united_schema(schemas: Sequence[pa.Schema], sampling_rate: int) -> pa.Schema:
    """One schema for the tables of several increments: the columns of all, numbers of mixed types promoted.

    Raises:
        ValueError: a column has types that do not go together.
    """
    try:
        united = pa.unify_schemas([schema.remove_metadata() for schema in schemas], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"a column has types that do not go together: {error}") from error
    extra = pa.schema([column for column in united if column.name not in ("audio", *ROW_COLUMNS)])
    return row_features(sampling_rate, extra).arrow_schema


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows of one increment under the schema of all: columns that the increment lacks are null."""
    columns = [
        table.column(column.name).cast(column.type)
        if column.name in table.column_names
        else pa.nulls(len(table), column.type)
        for column in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def table_name(split: str, increment: int) -> str:
    return f"{split}-{increment:05d}.parquet"


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
