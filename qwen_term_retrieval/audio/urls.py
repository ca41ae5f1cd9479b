"""URLs of any fsspec file system: `s3://bucket/a.flac`, `zip://folder/a.flac::/data/corpus.zip`, `memory://a.flac`."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system behind a URL, and the path within it.

    Raises:
        ValueError: an unknown protocol. ImportError: one whose package is missing. FileNotFoundError: no such archive.
    """
    head, chain, rest = url.partition("::")
    protocol, separator, path = head.partition("://")
    if not chain or not separator:
        return fsspec.core.url_to_fs(url)
    changed = Path(rest).stat().st_mtime_ns if Path(rest).is_file() else 0
    return _archive(f"{protocol}://::{rest}", changed, os.getpid()), path


@lru_cache(maxsize=8)
def _archive(url: str, changed: int, process: int) -> Any:  # noqa: ARG001  (keys of the cache)
    """An archive as a file system; fsspec (2026.9) opens it, and reads its table of contents, anew for every URL.

    One a process, because a forked child would share the place in the open file with its parent.
    """
    return fsspec.core.url_to_fs(url)[0]
