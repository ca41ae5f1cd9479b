"""How good pairs are: counts, nulls, duplicates, lengths in characters and tokens, and what a limit would cut.

One pass over the files, whatever their size: lengths are counted in tables of fixed size, duplicates by a bit a row.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import tokenizers
from tabulate import tabulate

from qwen_term_retrieval.pretraining.text.preparation.converting import Sources, pairs_files
from qwen_term_retrieval.pretraining.text.preparation.duplicates import first_occurrences, text_hashes
from qwen_term_retrieval.pretraining.text.preparation.lengths import Lengths
from qwen_term_retrieval.pretraining.text.preparation.pairs import COLUMNS
from qwen_term_retrieval.pretraining.text.preparation.parquet import num_rows, parquet_batches, rows_of_batch
from qwen_term_retrieval.pretraining.text.preparation.splitting import normalized_response
from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.storage.atomic import atomic_file

_NUM_FIRST_ROWS = 3
_NAMES = {"json": "report.json", "text": "report.txt", "page": "report.html"}


@dataclass
class QualityReport:
    """What is known of pairs; `save` writes it as text, as JSON, and as a page with histograms.

    Attributes:
        lengths: by column and unit ("prompt", "characters"); tokens where a tokenizer was given.
        rejected: rows that are no pair, by reason; they are in no other number but `num_rows`.
        splits: pairs of each split, where they were split.
    """

    files: list[str]
    max_seq_len: int
    num_rows: int = 0
    num_duplicates: int = 0
    num_distinct_responses: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first_rows: list[dict[str, str]] = field(default_factory=list)
    lengths: dict[tuple[str, str], Lengths] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        used = self.num_rows - sum(self.rejected.values())
        return {
            "files": self.files,
            "rows": self.num_rows,
            "columns": list(COLUMNS),
            "rejected": dict(self.rejected),
            "splits": self.splits,
            "duplicates": self.num_duplicates,
            "distinct_responses": self.num_distinct_responses,
            "share_distinct_responses": round(self.num_distinct_responses / max(used, 1), 5),
            "max_seq_len": self.max_seq_len,
            "lengths": {
                unit: {
                    column: self.lengths[column, unit].summary()
                    | ({"cut": self.lengths[column, unit].cut_by(self.max_seq_len)} if unit == "tokens" else {})
                    | {"histogram": self.lengths[column, unit].histogram()}
                    for column in COLUMNS
                }
                for unit in self.units
            },
            "first_rows": self.first_rows,
        }

    @property
    def units(self) -> list[str]:
        return list(dict.fromkeys(unit for _, unit in self.lengths))

    def __str__(self) -> str:
        rows = [
            {"length of": f"{column}, {unit}", **lengths.summary()} for (column, unit), lengths in self.lengths.items()
        ]
        lines = [
            f"{', '.join(self.files)}: {self.num_rows} rows of {', '.join(COLUMNS)}",
            *(f"  rejected: {count} rows, {reason}" for reason, count in self.rejected.most_common()),
            f"  {self.num_duplicates} exact duplicates; {self.num_distinct_responses} distinct responses",
            *(f"  split: {rows} rows, {name}" for name, rows in self.splits.items()),
            *(self._cut_line(column) for column in COLUMNS if (column, "tokens") in self.lengths),
            "",
            tabulate(rows, headers="keys"),
            "",
            *(f"  {row['prompt'][:60]!r} -> {row['response'][:60]!r}" for row in self.first_rows),
        ]
        return "\n".join(lines)

    def _cut_line(self, column: str) -> str:
        cut = self.lengths[column, "tokens"].cut_by(self.max_seq_len)
        return (
            f"  max_seq_len {self.max_seq_len} cuts {cut['texts']:.2%} of the {column}s, "
            f"and {cut['of_all']:.2%} of their tokens"
        )

    def page(self) -> str:
        """The report as one HTML page."""
        environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
        return environment.get_template("quality.html.jinja").render(report=self, content=self.as_json())

    def save(self, folder: str | Path) -> None:
        """Write `report.txt`, `report.json` and `report.html`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "text": f"{self}\n",
            "json": json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n",
            "page": self.page(),
        }
        for kind, name in _NAMES.items():
            with atomic_file(folder / name) as file:
                file.write(content[kind].encode())


def inspect_pairs(
    source: Sources, *, tokenizer: tokenizers.Tokenizer | None = None, max_seq_len: int = 192, quiet: bool = False
) -> QualityReport:
    """Look at Parquet files with the columns `prompt` and `response`.

    Args:
        tokenizer: counts tokens too, and what `max_seq_len` (with the end token) would cut.

    Raises:
        CorpusError: a file that is no Parquet, or without these columns.
        FileNotFoundError: `source` does not exist.
    """
    files = pairs_files(source)
    report = QualityReport([str(path) for path in files], max_seq_len)
    units = ("characters", "tokens") if tokenizer is not None else ("characters",)
    report.lengths = {(column, unit): Lengths() for unit in units for column in COLUMNS}
    with tempfile.TemporaryDirectory() as folder:
        for name in COLUMNS:
            Path(folder, name).mkdir()
        responses = _Spool(Path(folder, "responses"))
        pairs = first_occurrences(_pair_hashes(files, report, tokenizer, responses, quiet), Path(folder, COLUMNS[0]))
        distinct = first_occurrences(responses.batches(), Path(folder, COLUMNS[1]))
    report.num_duplicates = pairs.num_dropped
    report.num_distinct_responses = distinct.num_rows - distinct.num_dropped
    return report


class _Spool:
    """Hashes kept on disk until the files of the pairs have been read."""

    def __init__(self, path: Path):
        self._path = path
        path.touch()

    def add(self, hash_N2: np.ndarray) -> None:
        with self._path.open("ab") as file:
            file.write(hash_N2.tobytes())

    def batches(self) -> Iterator[np.ndarray]:
        with self._path.open("rb") as file:
            while block := file.read(1 << 17):
                yield np.frombuffer(block, "<u8").reshape(-1, 2)


def _pair_hashes(
    files: list[Path],
    report: QualityReport,
    tokenizer: tokenizers.Tokenizer | None,
    responses: _Spool,
    quiet: bool,
) -> Iterator[np.ndarray]:
    total = sum(map(num_rows, files))
    with Progress(desc="inspecting", total=total, unit=" pairs", shown=not quiet) as progress:
        for path in files:
            for batch in parquet_batches(path, COLUMNS):
                pairs = list(_accepted(rows_of_batch(batch), report))
                _count(pairs, report, tokenizer)
                responses.add(text_hashes([(normalized_response(response),) for _, response in pairs]))
                yield text_hashes(pairs)
                progress.update(len(batch))


def _accepted(rows: Iterator[tuple[Any, ...] | None], report: QualityReport) -> Iterator[tuple[str, str]]:
    for row in rows:
        report.num_rows += 1
        if (reason := _fault(row)) is not None:
            report.rejected[reason] += 1
            continue
        prompt, response = row  # type: ignore[misc]
        if len(report.first_rows) < _NUM_FIRST_ROWS:
            report.first_rows.append({"prompt": prompt, "response": response})
        yield prompt, response


def _fault(row: tuple[Any, ...] | None) -> str | None:
    """Why a row is no pair, if it is none."""
    if row is None:
        return "not UTF-8"
    for name, text in zip(COLUMNS, row, strict=True):
        if text is None:
            return f"{name} is null"
        if not isinstance(text, str):
            return f"{name} is no text"
        if not text.strip():
            return f"{name} is empty"
    return None


def _count(pairs: list[tuple[str, str]], report: QualityReport, tokenizer: tokenizers.Tokenizer | None) -> None:
    for place, column in enumerate(COLUMNS):
        texts = [pair[place] for pair in pairs]
        report.lengths[column, "characters"].add(map(len, texts))
        if tokenizer is not None:
            tokenizer.encode_special_tokens = True  # as packing reads what a text spells
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            report.lengths[column, "tokens"].add(len(encoding) + 1 for encoding in encodings)  # and the end token
