"""Manifests: one row a clip, as JSON Lines, a JSON list, CSV, TSV or Parquet; term-level corpora among them.

    {"audio": "clips/0001.flac", "text": "has atrial fibrillation", "terms": ["atrial fibrillation"]}

The term-level schema of earlier systems is read as it is: `term_chunk_audio`, `term_chunk_text` and
`term_chunk_audio_ground_truth_terms`. Its `term_start_time` is a place in the recording that the chunk was cut from,
not in the chunk, and passes through.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qwen_term_retrieval.corpora.locations import Location, parent, path_of, suffix_of
from qwen_term_retrieval.corpora.readers.csv_rows import csv_rows
from qwen_term_retrieval.corpora.readers.json_rows import json_rows
from qwen_term_retrieval.corpora.readers.parquet_rows import parquet_rows
from qwen_term_retrieval.corpora.row_rules import RowRules, to_utterance
from qwen_term_retrieval.corpora.utterance import Utterance, split_of_path
from qwen_term_retrieval.errors import CorpusError

MANIFEST_SUFFIX = ".termaudio"
KIND_OF_SUFFIX = {
    MANIFEST_SUFFIX: "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


def is_manifest(file: Location) -> bool:
    """Whether the suffix (before a `.gz`) is one that `read_manifest` reads."""
    return suffix_of(file) in KIND_OF_SUFFIX


def manifest_rows(file: Location, rules: RowRules) -> Iterator[tuple[str, Any]]:
    """Yield `(where, row)` of a file, by its suffix."""
    kind = KIND_OF_SUFFIX.get(suffix_of(file))
    if kind == "json":
        return json_rows(file)
    if kind == "csv":
        return csv_rows(file, rules.list_columns())
    if kind == "parquet":
        return parquet_rows(file)
    raise CorpusError(f"{file}: no manifest format has this suffix; known are {', '.join(KIND_OF_SUFFIX)}")


def read_manifest(file: Location, rules: RowRules) -> Iterator[Utterance]:
    """Yield the utterances of one manifest; audio paths are relative to its folder, keys to the corpus."""
    split = split_of_manifest(file, rules)
    folder = parent(file)
    for where, row in manifest_rows(file, rules):
        yield to_utterance(row, where, folder, rules, folder_split=split)


def split_of_manifest(file: Location, rules: RowRules) -> str | None:
    """The split that the place or the name of a manifest tells."""
    path, root = path_of(file), path_of(rules.root)
    return split_of_path(path.relative_to(root)) if path.is_relative_to(root) else None
