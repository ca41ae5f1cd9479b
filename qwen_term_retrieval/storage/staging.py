"""Folders that appear whole or not at all: what may stand in the place of one, and how it is made and put there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import xxhash
from filelock import FileLock, Timeout

from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.storage.atomic import sync_folder

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_COPY_BYTES = 1 << 20


def check_free(out: Path, what: str, sign: str = "", *, overwrite: bool = False) -> None:
    """Check that `what` ("a pack") may be made at `out`: where nothing is, or in place of its like if that was asked.

    Args:
        sign: name of the file that its like is known by; without one, nothing is ever replaced.

    Raises:
        FileExistsError: something else is there, or one that is not to be overwritten.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not sign or not (out / sign).is_file():
        raise FileExistsError(f"{out} exists and is not {what}; it is left alone. Give another folder")
    if not overwrite:
        raise FileExistsError(f"{out} is {what} already; give another folder, or overwrite=True")


@contextmanager
def staging_of(out: Path) -> Iterator[Path]:
    """`<out>.incomplete`, for one writer at a time; it goes when the block ends without an error.

    Raises:
        PackError: another process writes to `out`, or the disk is full.
        OSError: the folder cannot be written to.
    """
    staging = out.with_name(f"{out.name}.incomplete")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with FileLock(staging / "lock", timeout=0):
            try:
                yield staging
            except BaseException:
                _drop_if_empty(staging)
                raise
            _remove(staging)
    except Timeout as error:
        raise PackError(f"another process is packing into {out}; wait for it, or give another folder") from error
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise PackError(
            f"the disk is full, or a file grew over the size allowed here ({error}). Make room and run again: what is "
            f"in {staging} is kept, and packing goes on from there"
        ) from error


def _remove(staging: Path) -> None:
    """Delete a staging folder, the notes of an append in it last: until then they say that it had finished."""
    for path in staging.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    shutil.rmtree(staging)


def _drop_if_empty(staging: Path) -> None:
    """Leave nothing behind where nothing was made: a mistyped source is no pack under way."""
    if staging.is_dir() and not any(path.is_file() and path.name != "lock" for path in staging.rglob("*")):
        shutil.rmtree(staging)


def publish(pack: Path, out: Path) -> None:
    """Rename a finished pack to `out`; another that it replaces goes with the staging folder."""
    if out.exists():
        replaced = pack.with_name("replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        out.rename(replaced)
    pack.rename(out)
    sync_folder(out.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name: a hard link, or a copy on another file system or one without hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def copy_part(part: Path, start: int, num_bytes: int, target: BinaryIO, digest: xxhash.xxh64) -> None:
    """Write a stretch of a part, which lies in a folder of the staging folder, to a shard, and to its checksum.

    Raises:
        PackError: the part is gone, or ends early.
    """
    if not part.is_file():
        raise PackError(
            f"{part}: needed, but used up by an interrupted run with another corpus or other settings. "
            f"Delete {part.parent.parent} and pack again."
        )
    block = memoryview(bytearray(min(num_bytes, _COPY_BYTES)))
    with part.open("rb", buffering=0) as file:
        file.seek(start)
        while num_bytes:
            count = file.readinto(block[: min(num_bytes, _COPY_BYTES)])
            if not count:
                raise PackError(f"{part}: ends early. Delete {part.parent.parent} and pack again.")
            target.write(block[:count])
            digest.update(block[:count])
            num_bytes -= count
