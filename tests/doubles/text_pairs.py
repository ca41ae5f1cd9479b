"""Pairs of made-up words in every kind of file, and folders prepared from them."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from qwen_term_retrieval.pretraining.text.preparation.preparing import prepare_text
from tests.doubles.token_corpus import SYLLABLES


def made_up_pairs(count: int, seed: int = 0, longest: int = 24) -> list[tuple[str, str]]:
    """Some syllables, and how many they are, backwards; no two alike."""
    lot = random.Random(seed)
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        syllables = lot.choices(SYLLABLES, k=lot.randint(1, longest))
        pairs[" ".join(syllables)] = f"of {len(syllables)} {' '.join(reversed(syllables))}"
    return list(pairs.items())


def write_pairs(path: Path, pairs: list[tuple[str, str]], names: tuple[str, str] = ("prompt", "response")) -> Path:
    """Write pairs as the suffix of `path` says."""
    rows = [dict(zip(names, pair, strict=True)) for pair in pairs]
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([names, *pairs])
        path.write_text(text.getvalue(), encoding="utf-8", newline="")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_parquet(path: Path) -> list[tuple[str, str]]:
    return [tuple(row.values()) for row in parquet.read_table(path).to_pylist()]


def prepared(folder: Path, count: int = 600, **settings) -> Path:
    """A folder that a run can train on."""
    source = write_pairs(folder.with_suffix(".jsonl"), made_up_pairs(count))
    return prepare_text(source, folder, **{"vocab_size": 400, "num_workers": 1, "quiet": True, **settings})
