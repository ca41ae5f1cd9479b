"""Files of a corpus, on this machine or behind a URL of any fsspec file system, under one set of functions.

A location is a `Path`, or a `str` that is a URL: `s3://bucket/folder`, `zip://folder::/data/corpus.zip`. In a chained
URL the path stands before the first `::`.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from qwen_term_retrieval.audio.sources import is_url
from qwen_term_retrieval.audio.urls import file_system
from qwen_term_retrieval.errors import CorpusError

Location = Path | str


def located(source: str | Path) -> Location:
    """The location a user names: a URL stays text, `file://` and all else is a path."""
    text = str(source)
    if not is_url(text):
        return Path(source)
    return Path(text.removeprefix("file://")) if text.startswith("file://") and "::" not in text else text


def path_of(location: Location) -> PurePosixPath:
    """The path of a location within its file system."""
    if isinstance(location, Path):
        return PurePosixPath(location.as_posix())
    protocol, path, _ = _parts_of_url(location)
    return PurePosixPath(path.partition("?")[0] if protocol.startswith("http") else path)


def parent(location: Location) -> Location:
    if isinstance(location, Path):
        return location.parent
    protocol, path, rest = _parts_of_url(location)
    return f"{protocol}{path.rpartition('/')[0]}{rest}"


def joined(folder: Location, name: str) -> Location:
    """`name` below `folder`; a name that is a URL or an absolute path stands for itself."""
    if is_url(name):
        return located(name)
    if isinstance(folder, Path) or name.startswith("/"):
        return Path(folder, name) if isinstance(folder, Path) else Path(name)
    protocol, path, rest = _parts_of_url(folder)
    return f"{protocol}{path.rstrip('/')}/{name}{rest}" if path else f"{protocol}{name}{rest}"


def audio_below(folder: Location, name: str) -> str:
    """`joined` as a string: to build a `Path` takes longer than to read the row it stands in."""
    tidy = "//" not in name and "./" not in name
    if isinstance(folder, Path) and tidy and not name.startswith("/"):
        return name if str(folder) == "." else f"{folder}/{name}"
    return name if tidy and not is_url(name) and name.startswith("/") else str(joined(folder, name))


def found_from(folder: Location, name: str) -> Location:
    """A path as recipes write it: relative to `folder`, or else to where the recipe was run."""
    beside = joined(folder, name)
    if isinstance(beside, Path) and not _exists(beside) and _exists(Path(name)):
        return Path(name)
    return beside


def suffix_of(location: Location) -> str:
    """The lower-case suffix, `.gz` passed over: `cuts.jsonl.gz` → `.jsonl`."""
    path = path_of(location)
    return PurePosixPath(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def is_file(location: Location) -> bool:
    if isinstance(location, Path):
        return location.is_file()
    system, path = _file_system(location)
    return bool(system.isfile(path))


def is_folder(location: Location) -> bool:
    if isinstance(location, Path):
        return location.is_dir()
    system, path = _file_system(location)
    return bool(system.isdir(path))


def entries_in(folder: Location) -> dict[str, bool]:
    """Names that lie directly in a folder, sorted, and whether each is itself a folder."""
    if isinstance(folder, Path):
        with os.scandir(folder) as entries:
            return dict(sorted((entry.name, entry.is_dir()) for entry in entries))
    system, path = _file_system(folder)
    found = system.ls(path, detail=True)
    return dict(sorted((PurePosixPath(entry["name"]).name, entry["type"] == "directory") for entry in found))


def walk(folder: Location) -> Iterator[str]:
    """Paths of all files below a folder, relative to it: sorted, a folder's own files before those of its folders.

    Names that begin with a dot are passed over: macOS keeps a `._clip.wav` beside a `clip.wav` copied elsewhere.
    """
    if isinstance(folder, Path):
        for place, folders, files in os.walk(folder):
            folders[:] = _visible(folders)
            below = PurePosixPath(Path(place).relative_to(folder).as_posix())
            yield from ((below / name).as_posix() for name in _visible(files))
        return
    system, path = _file_system(folder)
    base = path.rstrip("/")
    found = [name[len(base) :].lstrip("/") for name in system.find(path)]
    yield from sorted((name for name in found if "/." not in f"/{name}"), key=_in_order_of_walk)


def _visible(names: list[str]) -> list[str]:
    return sorted(name for name in names if not name.startswith("."))


def _in_order_of_walk(path: str) -> list[tuple[bool, str]]:
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


@contextmanager
def opened(location: Location) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed where its name ends in `.gz`."""
    if isinstance(location, Path):
        file: BinaryIO = location.open("rb")
    else:
        system, path = _file_system(location)
        file = cast(BinaryIO, system.open(path, "rb"))
    with file:
        if path_of(location).suffix.lower() == ".gz":
            with gzip.open(file) as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield file


def text_lines(location: Location) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file.

    Raises:
        CorpusError: naming the line that is not UTF-8, or the file that is not gzip though it is named so.
    """
    number = 0
    try:
        with opened(location) as file:
            for number, raw in enumerate(file, start=1):
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{location}, line {number}: not UTF-8. Save the file as UTF-8.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(f"{location}, after line {number}: broken gzip ({error}); copy the file again") from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, say
        return False


def _parts_of_url(url: str) -> tuple[str, str, str]:
    """Protocol with `://`, path, and the rest of the chain with its `::`."""
    head, chain, rest = url.partition("::")
    protocol, separator, path = head.partition("://")
    return protocol + separator, path, chain + rest


def _file_system(url: str) -> tuple[Any, str]:
    try:
        return file_system(url)
    except (ValueError, ImportError) as error:
        raise CorpusError(f"{url}: no such file system here: {error}") from error
