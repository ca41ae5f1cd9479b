"""About how many rows a corpus has, where that is cheap to know: for the time left on progress bars.

Lines are counted, tables and datasets say it themselves, audio files are listed. Compressed lines, lists of JSON and
tars are judged by their beginning. Behind a URL all of it would cost a pass of its own, and nothing is said.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath

import datasets
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from qwen_term_retrieval.audio.sources import FileSlice
from qwen_term_retrieval.corpora.locations import Location, suffix_of, walk
from qwen_term_retrieval.corpora.readers.folder import AUDIO_SUFFIXES, find_manifests
from qwen_term_retrieval.corpora.readers.hf_datasets import num_rows
from qwen_term_retrieval.corpora.readers.kaldi import SEGMENTS, WAV_SCP, data_folders
from qwen_term_retrieval.corpora.readers.manifests import KIND_OF_SUFFIX
from qwen_term_retrieval.corpora.readers.parquet_dataset import find_tables
from qwen_term_retrieval.corpora.readers.webdataset import find_tars, tar_members

_BLOCK_BYTES = 1 << 20
_TAR_MEMBERS = 500
_BEFORE_ROW = re.compile(r"[\s,]*")
# Of a damaged corpus nothing is said here: its reader tells what is wrong, and what to do.
_DAMAGE = (ValueError, OSError, EOFError, KeyError, zlib.error, pa.ArrowException)


def estimated_rows(format: str, location: Location) -> int | None:
    """About how many rows a corpus of this format has; None where only reading it would tell."""
    if isinstance(location, Path):
        with suppress(*_DAMAGE):
            return _ESTIMATES[format](location)
    return None


def _rows_of_folder(folder: Path) -> int | None:
    manifests = find_manifests(folder)
    return _sum(_rows_of_manifest(Path(file)) for file in manifests) if manifests else _rows_of_audio(folder)


def _rows_of_audio(folder: Path) -> int:
    return sum(PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES for name in walk(folder))


def _rows_of_manifest(file: Path) -> int | None:
    kind = KIND_OF_SUFFIX[suffix_of(file)]
    if kind == "parquet":
        return parquet.read_metadata(file).num_rows
    with file.open("rb") as stream:
        head = stream.read(_BLOCK_BYTES)
    num_bytes = file.stat().st_size
    if file.suffix == ".gz":
        num_lines = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head).count(b"\n")
        return round(num_lines * num_bytes / max(len(head), 1))
    if head.lstrip().startswith(b"["):
        return _rows_of_list(head.decode(errors="ignore"), num_bytes)
    return _lines(file) - (kind == "csv")


def _lines(file: Path) -> int:
    with file.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(_BLOCK_BYTES), b""))


def _rows_of_list(head: str, num_bytes: int) -> int | None:
    """By the rows that are whole in the first characters of a list."""
    decoder, num_whole, end = json.JSONDecoder(), 0, head.index("[") + 1
    with suppress(json.JSONDecodeError):
        while True:
            _, end = decoder.raw_decode(head, _BEFORE_ROW.match(head, end).end())  # type: ignore[union-attr]
            num_whole += 1
    return round(num_whole * num_bytes / len(head[:end].encode())) if num_whole else None


def _rows_of_kaldi(folder: Path) -> int:
    places = [Path(place) for place in data_folders(folder)]
    return sum(_lines(place / (SEGMENTS if (place / SEGMENTS).is_file() else WAV_SCP)) for place in places)


def _rows_of_tars(source: Path) -> int | None:
    tars = [tar for tar, _ in find_tars(source)]
    members = [member for _, member in islice(tar_members(tars[0]), _TAR_MEMBERS) if isinstance(member, FileSlice)]
    num_bytes = sum(tar.stat().st_size for tar in tars)
    return round(len(members) * num_bytes / (members[-1].offset + members[-1].num_bytes)) if members else None


def _rows_of_parquet_dataset(folder: Path) -> int:
    return sum(parquet.read_metadata(file).num_rows for _, file in find_tables(folder))


def _rows_of_saved_dataset(folder: Path) -> int | None:
    return num_rows(datasets.load_from_disk(str(folder)))


def _rows_of_legacy(folder: Path) -> int:
    count = 0
    for index in folder.glob("shard_*.index.npz"):
        with np.load(index) as arrays:
            count += len(arrays["offset"])
    return count


def _sum(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)


_ESTIMATES: dict[str, Callable[[Path], int | None]] = {
    "folder": _rows_of_folder,
    "audio": _rows_of_audio,
    "manifest": _rows_of_manifest,
    "nemo": _rows_of_manifest,
    "lhotse": _rows_of_manifest,
    "kaldi": _rows_of_kaldi,
    "webdataset": _rows_of_tars,
    "parquet": _rows_of_parquet_dataset,
    "datasets": _rows_of_saved_dataset,
    "legacy": _rows_of_legacy,
}
