"""Training and validation rows that share no response: the side of a row follows from its response alone.

A split by row number leaks: of WordNet's 206,978 definitions 117,033 are distinct, so most of a random validation set
would have been trained on. A hash of the response, its spacing, case and width aside, puts all rows of one response on
one side, in whatever order and company they come; a corpus that grows moves no row. Where validation or test pairs come
as files of their own, rows that share a response with them are left out of what is split.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import xxhash

from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.pretraining.text.preparation.converting import Sources, pairs_files
from qwen_term_retrieval.pretraining.text.preparation.duplicates import RowSet, first_occurrences, text_hashes
from qwen_term_retrieval.pretraining.text.preparation.pairs import COLUMNS
from qwen_term_retrieval.pretraining.text.preparation.parquet import (
    PairWriter,
    num_rows,
    parquet_batches,
    rows_of_batch,
)
from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.storage.staging import check_free, publish, staging_of

SPLITS = ("train", "valid", "test")
_HASHES = float(1 << 64)


@dataclass(frozen=True)
class SplitSummary:
    """How many pairs each split has, how many repeated others, and how many shared a response with given splits."""

    folder: Path
    num_rows: dict[str, int]
    num_duplicates: int
    num_shared: int = 0

    def __str__(self) -> str:
        total = sum(self.num_rows.values())
        sizes = ", ".join(f"{name} {rows} ({rows / total:.1%})" for name, rows in self.num_rows.items())
        shared = f", and {self.num_shared} with a response of the given splits" if self.num_shared else ""
        return f"{self.folder}: {sizes}; {self.num_duplicates} exact duplicates left out{shared}"


def normalized_response(text: str) -> str:
    r"""What counts as one response: width, case and spacing aside.

    >>> normalized_response("  A  ｄｏｇ\\n")
    'a dog'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_of_response(response: str, *, valid: float, test: float = 0.0, seed: int = 42) -> str:
    """The side of a response, "train", "valid" or "test": a function of the response, the shares and the seed."""
    place = _response_hash(response, seed) / _HASHES
    return "valid" if place < valid else "test" if place < valid + test else "train"


def _response_hash(response: str, seed: int = 0) -> int:
    return xxhash.xxh3_64_intdigest(normalized_response(response).encode(), seed)


def split_pairs(
    source: Sources,
    out: str | Path,
    *,
    valid: float = 0.1,
    test: float = 0.0,
    valid_source: Sources | None = None,
    test_source: Sources | None = None,
    seed: int = 42,
    deduplicate: bool = True,
    overwrite: bool = False,
    quiet: bool = False,
) -> SplitSummary:
    """Write `train.parquet`, `valid.parquet` and, where it has a share, `test.parquet` into a folder, whole or not.

    Args:
        source: Parquet files with the columns `prompt` and `response`, as `convert_pairs` makes them.
        valid, test: shares of the distinct responses, about; of no meaning where the split is given.
        valid_source, test_source: Parquet files of splits that are given; their pairs are taken as they are, and rows
            of `source` with a response of theirs are left out.
        deduplicate: leave out pairs that repeat an earlier one to the letter.

    Raises:
        CorpusError: a file without these columns, or with a row that has none: convert it first.
        FileExistsError: `out` is there.
        ValueError: shares that leave nothing to train on, or a split that gets no row.
    """
    out = Path(out).absolute()
    given = {name: pairs_files(files) for name, files in (("valid", valid_source), ("test", test_source)) if files}
    valid, test = (0.0 if name in given else share for name, share in (("valid", valid), ("test", test)))
    if not ((valid > 0 or "valid" in given) and test >= 0 and valid + test < 1):
        raise ValueError(f"valid={valid} and test={test} must be shares of which something is left to train on")
    check_free(out, "a folder of splits", "train.parquet", overwrite=overwrite)
    files = pairs_files(source)
    names = [name for name, share in zip(SPLITS, (1, valid, test), strict=True) if share or name in given]
    with staging_of(out) as staging:
        kept = _distinct(files, staging, quiet) if deduplicate else RowSet(sum(map(num_rows, files)))
        folder = staging / "splits"
        folder.mkdir(exist_ok=True)
        with contextlib.ExitStack() as stack:
            opened = {name: stack.enter_context(atomic_file(folder / f"{name}.parquet")) for name in names}
            writers = {name: stack.enter_context(PairWriter(file)) for name, file in opened.items()}
            held_out = {name: _copy(paths, writers[name], name, quiet) for name, paths in given.items()}
            taken = frozenset().union(*held_out.values())
            num_shared = 0
            for row, pair in zip(count(), pairs_of(files, "splitting", quiet), strict=False):
                if not kept.has(row):
                    continue
                if taken and _response_hash(pair[1]) in taken:
                    num_shared += 1
                else:
                    writers[split_of_response(pair[1], valid=valid, test=test, seed=seed)].write(*pair)
            for name, writer in writers.items():
                if not writer.num_rows:
                    raise ValueError(f"{name} gets none of {kept.num_rows} rows; give it a larger share, or more rows")
        publish(folder, out)
    return SplitSummary(out, {name: writer.num_rows for name, writer in writers.items()}, kept.num_dropped, num_shared)


def _copy(files: list[Path], writer: PairWriter, name: str, quiet: bool) -> set[int]:
    """Write the pairs of a split that is given; returns the hashes of its responses."""
    hashes = set()
    for pair in pairs_of(files, f"reading {name}", quiet):
        writer.write(*pair)
        hashes.add(_response_hash(pair[1]))
    return hashes


def pairs_of(files: list[Path], description: str, quiet: bool) -> Iterator[tuple[str, str]]:
    """(prompt, response) of each row of Parquet files.

    Raises:
        CorpusError: a row without one of them.
    """
    total = sum(map(num_rows, files))
    with Progress(desc=description, total=total, unit=" pairs", shown=not quiet) as progress:
        for path in files:
            row = 0
            for batch in parquet_batches(path, COLUMNS):
                for pair in rows_of_batch(batch):
                    row += 1
                    if pair is None:
                        raise CorpusError(f"{path}, row {row}: not UTF-8; run `qtr text convert --on-error skip` on it")
                    prompt, response = pair
                    if not (isinstance(prompt, str) and isinstance(response, str)):
                        raise CorpusError(f"{path}, row {row}: no prompt or no response; run `qtr text convert` on it")
                    yield prompt, response
                progress.update(len(batch))


def _distinct(files: list[Path], staging: Path, quiet: bool) -> RowSet:
    folder = staging / "hashes"
    folder.mkdir(exist_ok=True)
    return first_occurrences(_hashes(files, quiet), folder)


def _hashes(files: list[Path], quiet: bool) -> Iterator[np.ndarray]:
    rows: list[tuple[str, str]] = []
    for pair in pairs_of(files, "looking for duplicates", quiet):
        rows.append(pair)
        if len(rows) == 1 << 13:
            yield text_hashes(rows)
            rows = []
    if rows:
        yield text_hashes(rows)
