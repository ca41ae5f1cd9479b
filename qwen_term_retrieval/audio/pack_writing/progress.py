"""What is packed, how many rows it has where that is cheap to know, and the bar that shows how far packing has come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import datasets
from pyarrow import parquet
from tqdm import tqdm

from qwen_term_retrieval.audio.corpus import read_corpus
from qwen_term_retrieval.audio.utterance import Utterance

Source: TypeAlias = str | Path | datasets.Dataset | datasets.DatasetDict | Iterable[Utterance]
_LINES = (".jsonl", ".termaudio", ".csv", ".tsv")
_BLOCK_BYTES = 1 << 20


def utterances_of(source: Source) -> Iterator[Utterance]:
    """The utterances of a corpus that is read, or of those given."""
    if isinstance(source, str | Path | datasets.Dataset | datasets.DatasetDict):
        return read_corpus(source)
    return iter(source)


def num_rows(source: Source) -> int | None:
    """About how many rows a corpus has, or None where only reading it would tell; for progress bars."""
    if isinstance(source, datasets.DatasetDict):
        return sum(source.num_rows.values())
    if isinstance(source, str | Path):
        path = Path(source)
        files = [path] if path.is_file() else _manifests(path)
        counts = [_rows_of_file(file) for file in files]
        return sum(count for count in counts if count is not None) if counts and None not in counts else None
    return len(source) if isinstance(source, Sized) else None


def _manifests(folder: Path) -> list[Path]:
    return [path for name in ("metadata.*", "*.termaudio") for path in folder.glob(name)]


def _rows_of_file(path: Path) -> int | None:
    if path.suffix == ".parquet":
        try:
            return parquet.read_metadata(path).num_rows
        except (OSError, ValueError):
            return None  # A damaged file: its reader says so, with the remedy.
    if path.suffix not in _LINES:
        return None
    with path.open("rb") as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK_BYTES), b""))
    return lines - (path.suffix in (".csv", ".tsv"))


class PackingBar:
    """Clips done and clips a second, hours of audio and hours a second, and the time left."""

    def __init__(self, bar: tqdm) -> None:
        self._bar = bar
        self._hours = 0.0

    def add(self, num_clips: int, seconds: float) -> None:
        """Count clips that are done, and their seconds of audio."""
        self._hours += seconds / 3600
        rate = self._hours / max(self._bar.format_dict["elapsed"], 1e-3)
        self._bar.set_postfix_str(f"{self._hours:.2f} h of audio, {rate:.3f} h/s", refresh=False)
        self._bar.update(num_clips)


@contextmanager
def packing_bar(total: int | None, *, quiet: bool) -> Iterator[PackingBar]:
    """A bar over `total` clips, on terminals only."""
    with tqdm(total=total, desc="packing", unit=" clips", disable=True if quiet else None) as bar:
        yield PackingBar(bar)
