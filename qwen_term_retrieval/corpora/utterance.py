"""One recording of a corpus and what is known of it; how its key and its split follow from its path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from qwen_term_retrieval.audio.sources import Audio, FileSlice
from qwen_term_retrieval.errors import CorpusError

TermSpan = tuple[float, float]
_SPLIT_NAMES = {"dev": "validation", "val": "validation", "valid": "validation", "eval": "validation"}
KEY_RULES = ("auto", "path", "term_chunks")
_SPLIT_ORDER = ("train", "validation", "test")


@dataclass(frozen=True)
class Utterance:
    """One recording of a corpus.

    `audio` is a path, a URL of any fsspec file system, a slice of a file, encoded bytes, or an array with its
    `sampling_rate`. The clip is all of it, or its seconds `start` to `end`; the mean of its channels, or the one that
    `channel` counts from 0. `term_spans` holds seconds within the clip, one `(start, end)` (or None) a term; None as a
    whole where no span is known. `source` says where the row stands, for messages. `extra` passes through to the
    dataset as columns.
    """

    key: str
    audio: Audio
    text: str = ""
    terms: tuple[str, ...] = ()
    term_spans: tuple[TermSpan | None, ...] | None = None
    speaker: str | None = None
    language: str | None = None
    split: str = "train"
    sampling_rate: int | None = None
    start: float = 0.0
    end: float | None = None
    channel: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def where(self) -> str:
        """Row, key and file, as error messages name an utterance."""
        file = f", file {self.audio}" if isinstance(self.audio, str | Path | FileSlice) else ""
        where = f"{self.source or 'utterance'}: key {self.key!r}{file}"
        # A file name that is no UTF-8 could neither be logged nor stored.
        return where.encode(errors="backslashreplace").decode()


def split_rank(split: str) -> tuple[int, str]:
    """Sorts train before validation before test before all others by name."""
    return (_SPLIT_ORDER.index(split) if split in _SPLIT_ORDER else len(_SPLIT_ORDER), split)


def split_of_path(relative: PurePath) -> str | None:
    """The split that a path's folders, or else its stem (`train`, `train-00000-of-00007`), name; None where none."""
    for part in (*relative.parts[:-1], re.split(r"[-_]\d|\.", relative.name)[0]):
        name = _SPLIT_NAMES.get(part.lower(), part.lower())
        if name in _SPLIT_ORDER:
            return name
    return None


def checked_split(name: str, where: str) -> str:
    """The name under which a split is stored: "validation" for `dev` and the like, all others as they are.

    Raises:
        CorpusError: it has other characters than letters, digits and underscores; the message starts with `where`.
    """
    name = _SPLIT_NAMES.get(name, name)
    if not re.fullmatch(r"\w+", name):
        raise CorpusError(f"{where}: {name!r} cannot name a split; use letters, digits and underscores")
    return name


def default_key(audio: str, root: str, rule: str = "auto") -> str:
    """The key of a recording that has none of its own: its path without the suffix.

    Args:
        audio: path of the recording, with forward slashes.
        root: the corpus, "" for none.
        rule: "path": below `root`. "term_chunks": below the last folder of that name, as term-level corpora have it:
            `…/term_chunks/POD/POD0000000002/X.wav` → `POD/POD0000000002/X`. "auto": the second where there is such a
            folder, else the first.

    Raises:
        CorpusError: "term_chunks" for a path without such a folder.
    """
    _, is_below, rest = f"/{audio}".rpartition("/term_chunks/")
    if rule != "path" and is_below:
        audio = rest
    elif rule == "term_chunks":
        raise CorpusError(f"{audio} lies in no folder term_chunks; use the key rule 'path', or give a column 'key'")
    elif root:
        audio = audio.removeprefix(root.rstrip("/") + "/")
    folder, slash, name = audio.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return (folder + slash + (stem if dot and stem else name)).lstrip("/")
