"""Files of pairs, whatever their kind, to one Parquet file with the columns `prompt` and `response`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qwen_term_retrieval.corpora.locations import walk
from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.pretraining.text.preparation.pairs import SUFFIXES, BadRow, is_pairs_file, read_pairs
from qwen_term_retrieval.pretraining.text.preparation.parquet import PairWriter
from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.storage.atomic import atomic_file

logger = logging.getLogger(__name__)

Sources = str | Path | Iterable[str | Path]
_SHOWN_PER_REASON = 3


@dataclass
class ConversionSummary:
    """What was written, what was left out, by reason, and the names of what was read."""

    path: Path
    num_rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    sources: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.path}: {self.num_rows} pairs"
        return text + "".join(f"\n  left out: {count} rows, {reason}" for reason, count in self.skipped.most_common())


def pairs_files(source: Sources) -> list[Path]:
    """The files of a source, folders searched to the bottom, in the order of their paths within each.

    Raises:
        FileNotFoundError: a path that does not exist.
        CorpusError: a folder without any file of pairs.
    """
    files: list[Path] = []
    for path in map(Path, [source] if isinstance(source, str | Path) else source):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give a file or folder of {', '.join(SUFFIXES)}")
        found = sorted(path / name for name in walk(path) if is_pairs_file(Path(name))) if path.is_dir() else [path]
        if not found:
            raise CorpusError(f"{path}: no file with a suffix that is read; those are {', '.join(SUFFIXES)}")
        files += found
    return files


def check_free_file(path: Path, *, overwrite: bool) -> None:
    """Raise a FileExistsError where a file stands in the way."""
    if path.exists() and not (overwrite and path.is_file()):
        raise FileExistsError(f"{path} exists; give another path, or overwrite=True")


def convert_pairs(
    source: Sources,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    overwrite: bool = False,
    quiet: bool = False,
) -> ConversionSummary:
    """Write all pairs of some files into one Parquet file, in their order, which appears whole or not at all.

    Args:
        source: CSV, TSV, JSON (a list, or one object a line), JSON Lines or Parquet; or folders of them.
        columns: what the files call `prompt` and `response`: `{"prompt": "question", "response": "answer"}`.
        on_error: "raise" ends at the first row that is no pair; "skip" leaves it out, counts it, and shows a few.

    Raises:
        CorpusError: a row that is no pair, with its file, line and reason; a file that cannot be read; no pair at all.
        FileExistsError: `out` is there.
        FileNotFoundError: `source` is not.
    """
    out = Path(out)
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}; it must be 'raise' or 'skip'")
    check_free_file(out, overwrite=overwrite)
    files = pairs_files(source)
    summary = ConversionSummary(out, sources=[path.name for path in files])
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file, PairWriter(file) as writer:
        rows = (row for path in files for row in read_pairs(path, columns))
        for row in Progress(rows, desc="converting", unit=" pairs", shown=not quiet):
            if isinstance(row, BadRow):
                _leave_out(row, summary, on_error)
            else:
                writer.write(*row)
        if not writer.num_rows:
            raise CorpusError(f"{files[0]}{' …' if files[1:] else ''}: no pair to convert {dict(summary.skipped)}")
    summary.num_rows = writer.num_rows
    return summary


def _leave_out(row: BadRow, summary: ConversionSummary, on_error: str) -> None:
    if on_error == "raise":
        raise CorpusError(f"{row.where}: {row.reason} ({row.found}); mend it, or leave such rows out: on_error='skip'")
    summary.skipped[row.reason] += 1
    if summary.skipped[row.reason] <= _SHOWN_PER_REASON:
        logger.warning("%s: %s (%s); left out", row.where, row.reason, row.found)
