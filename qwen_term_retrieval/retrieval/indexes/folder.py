"""The folder of a saved index: parts that are written once, and `meta.json`, which says what is in them.

```
meta.json                 model, sizes, parts; bytes and xxh64 of every other file; the last entry is its own checksum
part-<id>/                written once, never changed
  vectors.npy             float32 (R, D), opened by memory map
  sketch_*.npy            of many rows the same in int8, see `sketch.py`, or `graph.usearch`, see `graph.py`
  spellings.arrow, languages.arrow, extras.arrow, first_rows.npy, term_ids.npy, keys.npy, key_rows.npy
  sounds/                 pronunciations and their prefix tree, where the model hears sounds
removed-<id>.npy          which terms of a part are removed
```

What is saved in its own folder again writes the parts that are new and then `meta.json`, whose renaming is the change.
Elsewhere a folder is written beside its place and renamed, with all parts made one. Folders of version 1, with
`vectors.npy` and `terms.parquet`, open too.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from filelock import FileLock
from numpy.typing import NDArray

from qwen_term_retrieval.retrieval.indexes.graph import Graph, has_graph
from qwen_term_retrieval.retrieval.indexes.older_folder import open_first_version
from qwen_term_retrieval.retrieval.indexes.parts import Part
from qwen_term_retrieval.retrieval.indexes.sketch import Sketch, has_sketch
from qwen_term_retrieval.retrieval.indexes.sounds import PartSounds
from qwen_term_retrieval.retrieval.indexes.state import IndexState
from qwen_term_retrieval.retrieval.indexes.terms import TermTable, spelling_key
from qwen_term_retrieval.retrieval.indexes.vectors_file import VectorsFile
from qwen_term_retrieval.storage.atomic import atomic_file, sync_folder
from qwen_term_retrieval.storage.checksums import damages_found, file_xxh64
from qwen_term_retrieval.storage.staging import check_free

FORMAT = "qwen_term_retrieval.term_index"
FORMAT_VERSION = 2
META = "meta.json"
SOUNDS = "sounds"
VECTORS = "vectors.npy"
_LOCK = "lock"
_NO_CHECKSUM = "0" * 16
# Spellings whose keys tell one rule of normalisation from another.
_PROBES = ("Folder 7", "C++", "US", "5%", "naïve café", "Parkinson’s", "10⁶", "A/B", "the 30th")


class TermIndexError(ValueError):
    """A folder is no readable index, or the index belongs to another model."""


def is_index(folder: Path) -> bool:
    """Whether a folder holds an index, whole or damaged."""
    return (folder / META).is_file()


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuse where an index may not be written: over something else, or unasked over an index.

    Raises:
        FileExistsError: see `check_free`. TermIndexError: an index of a later version, or another's `meta.json`.
    """
    if is_index(folder):
        read_meta(folder, complete=False)
    check_free(folder, "a term index", META, overwrite=overwrite)


def read_meta(folder: Path, *, complete: bool = True) -> dict[str, Any]:
    """The `meta.json` of an index; with `complete`, its other files must have the sizes that it says.

    Raises:
        FileNotFoundError, TermIndexError: naming the folder or the file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"index folder {folder} does not exist")
    if not is_index(folder):
        raise TermIndexError(f"{folder} is no term index: it has no meta.json. Make one with `qtr index`.")
    try:
        text = (folder / META).read_text(encoding="utf-8")
        meta = json.loads(text)
    except ValueError as error:
        raise TermIndexError(f"{folder} is not a complete term index: meta.json: {error}") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise TermIndexError(f"{folder} is not a term index: its meta.json says nothing of {FORMAT!r}")
    version = meta.get("version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise TermIndexError(f"{folder} is an index of version {version}; this release reads {FORMAT_VERSION}")
    if version > 1 and _sealed(meta) != text:
        raise TermIndexError(f"{folder / META} is damaged: its checksum does not match. Index the glossary again.")
    sizes = meta["bytes"] if version == 1 else {name: file["bytes"] for name, file in meta["files"].items()}
    for name, size in sizes.items() if complete else ():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise TermIndexError(f"{path} is missing or cut short (expected {size} bytes). Index the glossary again.")
    return meta


def _sealed(meta: Mapping[str, Any]) -> str:
    """The text of a `meta.json`, its last entry the xxh64 of the text with zeros in place of these sixteen digits."""
    text = json.dumps({**meta, "checksum": _NO_CHECKSUM}, indent=1) + "\n"
    before, _, after = text.rpartition(_NO_CHECKSUM)
    return before + xxhash.xxh64_hexdigest(text.encode()) + after


def damages_of(folder: Path, *, quiet: bool = True) -> list[str]:
    """One line for each damage to an index, found by reading every byte.

    Raises:
        FileNotFoundError, TermIndexError: no index; or one of version 1, which has no checksums.
    """
    try:
        meta = read_meta(folder, complete=False)
    except TermIndexError as error:
        if is_index(folder):
            return [str(error)]
        raise
    if meta["version"] == 1:
        raise TermIndexError(
            f"{folder} is an index of version 1, which has no checksums: load it and save it elsewhere, or index again"
        )
    return damages_found(folder, meta["files"], [], lambda _: [], quiet=quiet)


def key_rule() -> str:
    """Identity of the rule by which spellings are known; keys of another rule are made anew on opening."""
    return xxhash.xxh64_hexdigest("|".join(spelling_key(probe, None) for probe in _PROBES).encode())


# ---- reading --------------------------------------------------------------------------------------------------------


def open_state(folder: Path, meta: Mapping[str, Any]) -> IndexState:
    """The parts that `meta.json` names; nothing but the head of their files is read.

    Raises:
        TermIndexError: the files are not those of one index.
    """
    try:
        if meta["version"] == 1:
            state = open_first_version(folder, meta)
        else:
            parts = [_open_part(folder / named["name"]) for named in meta["parts"]]
            if meta["key_rule"] != key_rule():
                parts = [replace(part, terms=TermTable.of(list(part.terms))) for part in parts]
            removed = [named["removed"] and np.load(folder / named["removed"]) for named in meta["parts"]]
            state = IndexState(tuple(parts), tuple(removed))
    except (OSError, ValueError, KeyError) as error:
        raise TermIndexError(f"{folder}: its files are not those of one index ({error}). Index again.") from error
    widths = {part.vectors_RD.shape[1] for part in state.parts}
    if (len(state), state.num_rows) != (meta["num_terms"], meta["num_vectors"]) or widths - {meta["dim"]}:
        raise TermIndexError(f"{folder}: its files disagree about how many terms there are. Index again.")
    return state


def _open_part(folder: Path) -> Part:
    file = VectorsFile.open(folder / VECTORS)
    sketch = Sketch.open(folder) if has_sketch(folder) else None
    graph = Graph.open(folder) if has_graph(folder) else None
    part = Part(
        TermTable.open(folder),
        file.mapped,
        file if graph is not None or (sketch is not None and sketch.is_whole) else None,
        sketch,
        graph,
        sounds=PartSounds.open(folder / SOUNDS) if (folder / SOUNDS).is_dir() else None,
        home=folder,
    )
    if part.terms.num_rows != len(part.vectors_RD):
        raise ValueError(f"{folder}: {part.terms.num_rows} spellings, but {len(part.vectors_RD)} vectors")
    return part


# ---- writing --------------------------------------------------------------------------------------------------------


def write_index(folder: Path, state: IndexState, about: Mapping[str, Any], *, overwrite: bool) -> IndexState:
    """Write an index, whole or not at all, and give the state as it lies there.

    Args:
        about: what `meta.json` says of the model and the language.

    Raises:
        FileExistsError, TermIndexError: see `check_target`.
    """
    check_target(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if overwrite and is_index(folder) and any(_lies_in(part, folder) for part in state.parts):
        with FileLock(folder / _LOCK):
            return _write_what_is_new(folder, state, about)
    # Beside the target, so that the final rename stays on one file system.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        new = Path(scratch) / "new"
        new.mkdir(mode=0o755)
        written = _write_what_is_new(new, state, about)
        put_in_place(new, folder, Path(scratch))
    return replace(written, parts=tuple(_moved(part, folder) for part in written.parts))


def put_in_place(new: Path, folder: Path, scratch: Path) -> None:
    """Rename a finished folder to its place; what it replaces goes to `scratch`."""
    if folder.exists():
        folder.rename(scratch / "old")
    new.rename(folder)
    sync_folder(folder.parent)


def _moved(part: Part, folder: Path) -> Part:
    return part if part.home is None else replace(part, home=folder / part.home.name)


def _lies_in(part: Part, folder: Path) -> bool:
    return part.home is not None and part.home.parent.resolve() == folder.resolve() and part.home.is_dir()


def _write_what_is_new(folder: Path, state: IndexState, about: Mapping[str, Any]) -> IndexState:
    """Write parts and masks that are not there, then `meta.json`; then delete what it does not name."""
    known = read_meta(folder)["files"] if is_index(folder) else {}
    parts, named, names = [], [], []
    for part, gone in zip(state.parts, state.removed, strict=True):
        if not _lies_in(part, folder):
            part = write_part(part, folder / f"part-{uuid.uuid4().hex[:16]}")
        home = part.home
        if home is None:
            raise ValueError("a part that was written has a home")
        removed = None if gone is None else _write_mask(folder, gone)
        names += [str(path.relative_to(folder)) for path in files_below(home)] + ([removed] if removed else [])
        parts.append(part)
        named.append({"name": home.name, "num_terms": len(part), "num_rows": part.terms.num_rows, "removed": removed})
    files = {name: known.get(name) or describe(folder / name) for name in names}
    write_meta(
        folder, {**about, "num_terms": len(state), "num_vectors": state.num_rows, "parts": named, "files": files}
    )
    kept = {each["name"] for each in named} | {each["removed"] for each in named}
    for path in folder.iterdir():
        if path.name not in kept and path.name.startswith(("part-", "removed-")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return replace(state, parts=tuple(parts))


def write_meta(folder: Path, about: Mapping[str, Any]) -> None:
    """Write `meta.json`; with its name, an index is there."""
    meta = {**about, "format": FORMAT, "version": FORMAT_VERSION, "key_rule": key_rule()}
    with atomic_file(folder / META) as file:
        file.write(_sealed(meta).encode())


def describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "xxh64": file_xxh64(path)}


def write_part(part: Part, folder: Path) -> Part:
    """Write a part under another name first, and give it as it lies there: its vectors mapped from the file."""
    scratch = folder.with_name(f".{folder.name}.tmp")
    scratch.mkdir()
    try:
        write_columns(part, scratch)
        _write_vectors(part.vectors_RD, scratch / VECTORS)
        sync_files(scratch)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch)
        raise
    sync_folder(folder.parent)
    written = replace(_open_part(folder), sounds=part.sounds)
    # Those on a GPU stay there.
    return written if part.vectors_RD.device.type == "cpu" else replace(written, vectors_RD=part.vectors_RD, file=None)


def write_columns(part: Part, folder: Path) -> None:
    """Write all of a part but its vectors."""
    part.terms.save(folder)
    for extra in (part.sketch, part.graph):
        if extra is not None:
            extra.save(folder)
    if part.sounds is not None:
        (folder / SOUNDS).mkdir(exist_ok=True)
        part.sounds.save(folder / SOUNDS)


def _write_vectors(vectors_RD: torch.Tensor, path: Path) -> None:
    """In float32, whatever they are held in, block by block."""
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": tuple(vectors_RD.shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for block_RD in vectors_RD.split(1 << 16):
            file.write(np.ascontiguousarray(block_RD.float().cpu().numpy()).data)


def _write_mask(folder: Path, gone: NDArray[np.bool_]) -> str:
    name = f"removed-{xxhash.xxh64_hexdigest(gone.tobytes())}.npy"
    if not (folder / name).is_file():
        with atomic_file(folder / name) as file:
            np.save(file, gone)
    return name


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def sync_files(folder: Path) -> None:
    """See that what was written below a folder reaches the disk."""
    for path in files_below(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
