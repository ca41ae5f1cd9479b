"""Where a recording can come from: a path, a URL, bytes, an open file, an array, or a slice of another file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

_BY_PYAV = {f".{name}" for name in ("aac", "ac3", "amr", "m4a", "m4b", "mka", "wma")}
_FILMS = {f".{name}" for name in ("avi", "flv", "mkv", "mov", "mp4", "mpeg", "mpg", "webm", "wmv", "3gp", "3g2")}
# What a folder is searched for; any file may be given by its name.
AUDIO_SUFFIXES = frozenset(f".{name.lower()}" for name in soundfile.available_formats()).union(
    {".opus", ".aif", ".oga"}, _BY_PYAV, _FILMS
)


@dataclass(frozen=True)
class FileSlice:
    """An encoded recording that lies inside another file, as a member of a tar does; offset and size in bytes.

    `suffix` (".flac") tells its format where its first bytes do not.
    """

    path: Path
    offset: int
    num_bytes: int
    suffix: str = ""

    def __str__(self) -> str:
        return f"{self.path}, bytes {self.offset} to {self.offset + self.num_bytes}"


Audio = str | Path | FileSlice | bytes | np.ndarray


@dataclass(frozen=True)
class Recording:
    """A recording, and what of it is heard; whatever takes a clip takes one.

    channel: counted from 0; None: the mean of all. track: of a container with several audio tracks (mkv, mp4), counted
    from 0; None: its default.
    """

    audio: Any
    channel: int | None = None
    track: int | None = None

    def __str__(self) -> str:
        parts = [] if self.track is None else [f"track {self.track}"]
        parts += [] if self.channel is None else [f"channel {self.channel}"]
        name = name_of_audio(self.audio)
        return f"{name} ({', '.join(parts)})" if name and parts else name


def name_of_audio(audio: Any) -> str:
    """What messages call it: the path, or the name of an open file; empty where it has none."""
    if isinstance(audio, str | Path | Recording | FileSlice):
        return str(audio)
    name = getattr(audio, "name", None) if hasattr(audio, "read") else None
    return name if isinstance(name, str) else ""


def is_url(text: str) -> bool:
    """Whether a name is a URL of some file system, not a path: `s3://…`, `zip://…::…`."""
    return "://" in text
