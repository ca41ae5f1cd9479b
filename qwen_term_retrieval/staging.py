"""A folder that is made beside its name, by one process at a time, and takes the name when it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qwen_term_retrieval.audio.atomic import sync_folder
from qwen_term_retrieval.audio.shards import PackError


def check_free(out: Path, contents: str, overwrite: bool) -> None:
    """Refuse a folder `out` that holds anything but, with `overwrite`, another one with a file named `contents`.

    Raises:
        FileExistsError: with the remedy.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / contents).is_file():
        raise FileExistsError(f"{out} exists and holds no {contents}; give another folder")
    if not overwrite:
        raise FileExistsError(f"{out} holds a pack already; give another folder, or overwrite=True (--overwrite)")


@contextmanager
def locked_staging(out: Path) -> Iterator[Path]:
    """The folder `<out>.incomplete`, held by this process alone; it stays after an error, to go on from.

    Raises:
        PackError: another process holds it.
    """
    staging = out.with_name(f"{out.name}.incomplete")
    staging.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(staging / "lock", timeout=0):
            yield staging
    except Timeout as error:
        raise PackError(f"another process is packing into {out}; wait for it, or give another folder") from error


def publish(folder: Path, out: Path, staging: Path) -> None:
    """Give `folder`, which lies in `staging`, the name `out`, in place of what is there; drop `staging`."""
    if out.exists():
        replaced = staging / "replaced"
        if replaced.exists():
            shutil.rmtree(replaced)
        out.rename(replaced)
    folder.rename(out)
    sync_folder(out.parent)
    shutil.rmtree(staging)
