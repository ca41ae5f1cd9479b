"""What is packed, and the bar that shows how far packing has come and how long it will take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import datasets

from qwen_term_retrieval.corpora.corpus import CorpusReader, read_corpus
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.progress import Progress

Source: TypeAlias = str | Path | datasets.Dataset | datasets.DatasetDict | Iterable[Utterance]


def utterances_of(source: Source) -> Iterable[Utterance]:
    """The utterances of a corpus that is read, or those given."""
    if isinstance(source, str | Path | datasets.Dataset | datasets.DatasetDict):
        return read_corpus(source)
    return source


class PackingBar:
    """Clips done and clips a second, hours of audio and hours a second, and the time left."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._hours = 0.0

    def add(self, num_clips: int, seconds: float) -> None:
        """Count clips that are done, and their seconds of audio."""
        self._hours += seconds / 3600
        rate = self._hours / max(self._bar.format_dict["elapsed"], 1e-3)
        self._bar.set_postfix_str(f"{self._hours:.2f} h of audio, {rate:.3f} h/s", refresh=False)
        self._bar.update(num_clips)


@contextmanager
def packing_bar(utterances: Iterable[Utterance], *, quiet: bool) -> Iterator[PackingBar]:
    """A bar over the clips of `utterances`, on terminals only; with the time left where their number can be known."""
    with Progress(desc="packing", unit=" clips", shown=not quiet) as bar:
        if bar.is_seen:
            bar.total = _num_utterances(utterances)
        yield PackingBar(bar)


def _num_utterances(utterances: Iterable[Utterance]) -> int | None:
    if isinstance(utterances, CorpusReader):
        return utterances.estimated_rows()
    return len(utterances) if isinstance(utterances, Sized) else None
