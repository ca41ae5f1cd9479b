"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_BUFFER_BYTES = 1 << 20


@contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the name `path` only when the block ends without an error.

    Args:
        durable: the bytes reach the disk before the name does, so that a power cut, too, leaves no half a file under
            it. Without, a kill is survived, and whoever reads the file after a power cut must check its content.
    """
    # Of its own: an orphan of a kill, another thread or another machine may be writing the same file.
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with scratch.open("w+b", buffering=_BUFFER_BYTES) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def check_writable(path: Path) -> None:
    """Refuse, before the work, a file or folder that could not be made after it; its parent is made.

    Raises:
        OSError: naming the place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path if path.is_file() else path.parent, os.W_OK):
        # Of a place that is read-only for everyone `access` says no more than of one that is not ours.
        read_only = os.statvfs(path.parent).f_flag & os.ST_RDONLY
        number = errno.EROFS if read_only else errno.EACCES
        raise OSError(number, os.strerror(number), str(path))


def sync_folder(folder: Path) -> None:
    """Make renames within a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
