"""Where a recording can come from: a path, a URL, bytes, an array, or a slice of another file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


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


def is_url(text: str) -> bool:
    """Whether a name is a URL of some file system, not a path: `s3://…`, `zip://…::…`."""
    return "://" in text
