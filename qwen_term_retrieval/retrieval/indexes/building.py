"""A large glossary indexed straight into a folder: memory stays flat, and a killed run goes on where it stopped.

Stretches of terms are embedded one after another. The vectors of each go behind those before into the file that will
be the index's; then a small file with all else that is known of it appears, which says that the stretch is done. All
lies in `<out>.incomplete` until it is whole. The files do not depend on how often the run was interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
import xxhash
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from qwen_term_retrieval.retrieval.indexes.folder import (
    VECTORS,
    TermIndexError,
    check_target,
    describe,
    files_below,
    put_in_place,
    sync_files,
    write_columns,
    write_meta,
)
from qwen_term_retrieval.retrieval.indexes.parts import Part
from qwen_term_retrieval.retrieval.indexes.sounds import PartSounds
from qwen_term_retrieval.retrieval.indexes.terms import TermTable
from qwen_term_retrieval.retrieval.indexes.vectors_file import VectorsFile
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.text.ways import Ways
from qwen_term_retrieval.verification.pronunciations import PronunciationBank

logger = logging.getLogger(__name__)

_PLAN = "plan.json"
_HEADER_BYTES = 128


class Stretch(Protocol):
    """Some terms in a row, see `Embedded`."""

    @property
    def num_rows_T(self) -> NDArray[np.int32]: ...  # noqa: N802

    @property
    def hashes_S(self) -> NDArray[np.uint64]: ...  # noqa: N802

    @property
    def vectors_RD(self) -> torch.Tensor: ...  # noqa: N802

    @property
    def sounds(self) -> Ways | None: ...


def build_index(
    out: Path,
    terms: Sequence[Term],
    about: Mapping[str, Any],
    stretches: Callable[[int], Iterator[Stretch]],
    quick: Callable[[Part], Part],
    *,
    stretch_terms: int,
    overwrite: bool = False,
) -> None:
    """Write the index of these terms to `out`, whole or not at all.

    Args:
        terms: distinct, at least one.
        about: what `meta.json` says of the model and the language.
        stretches: embeds, from a term's number on, `stretch_terms` at a time.
        quick: gives a large part what makes it quick.

    Raises:
        FileExistsError, TermIndexError: see `check_target`; or another process writes there.
    """
    check_target(out, overwrite)
    staging = out.with_name(f"{out.name}.incomplete")
    staging.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(staging / "lock", timeout=0):
            _build(out, staging, terms, about, stretches, quick, stretch_terms)
    except Timeout as error:
        raise TermIndexError(f"another process is indexing into {out}; wait for it, or give another folder") from error
    shutil.rmtree(staging)


def _build(
    out: Path,
    staging: Path,
    terms: Sequence[Term],
    about: Mapping[str, Any],
    stretches: Callable[[int], Iterator[Stretch]],
    quick: Callable[[Part], Part],
    stretch_terms: int,
) -> None:
    digest = _digest(terms, about)
    plan = {"digest": digest, "num_terms": len(terms), "stretch_terms": stretch_terms}
    new = staging / "new"
    folder = new / f"part-{digest[:16]}"
    if not (staging / _PLAN).is_file() or json.loads((staging / _PLAN).read_text()) != plan or not folder.is_dir():
        for path in staging.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        folder.mkdir(parents=True)
        with atomic_file(staging / _PLAN) as file:
            file.write(json.dumps(plan).encode())
    done = _num_done(staging, stretch_terms, len(terms))
    if done:
        logger.info("%s: going on with term %s of %s", out, f"{done:,}", f"{len(terms):,}")
    dim = int(about["dim"])
    num_rows = int(_known(staging, range(0, done, stretch_terms), "num_rows_T").sum())
    with (folder / VECTORS).open("r+b" if done else "wb") as file:
        file.seek(_HEADER_BYTES + num_rows * dim * 4)
        for stretch in stretches(done) if done < len(terms) else ():
            if not bool(stretch.vectors_RD.isfinite().all()):
                raise ValueError("a term vector is not finite; was the model trained to NaN?")
            file.write(np.ascontiguousarray(stretch.vectors_RD.numpy(), np.float32).data)
            file.flush()
            # On the disk before it is said to be.
            os.fsync(file.fileno())
            _note_done(_stretch_file(staging, done), stretch)
            done += len(stretch.num_rows_T)
            num_rows += len(stretch.vectors_RD)
        file.truncate()
        _write_header(file, num_rows, dim)
    logger.info("%s: all %s terms embedded, sorting them", out, f"{len(terms):,}")
    every = range(0, len(terms), stretch_terms)
    table = TermTable.of(terms, _known(staging, every, "hashes_S"), _known(staging, every, "num_rows_T"))
    sounds = None
    if about["num_sounds"] is not None:
        sounds = PartSounds.of(_all_sounds(staging, every, int(about["num_sounds"])))
    vectors = VectorsFile.open(folder / VECTORS)
    part = quick(Part(table, vectors.mapped, vectors, sounds=sounds))
    write_columns(part, folder)
    sync_files(folder)
    names = [str(path.relative_to(new)) for path in files_below(folder)]
    named = {"name": folder.name, "num_terms": len(terms), "num_rows": part.terms.num_rows, "removed": None}
    contents = {"num_terms": len(terms), "num_vectors": part.terms.num_rows, "parts": [named]}
    write_meta(new, {**about, **contents, "files": {name: describe(new / name) for name in names}})
    put_in_place(new, out, staging)


def _digest(terms: Sequence[Term], about: Mapping[str, Any]) -> str:
    digest = xxhash.xxh3_128(json.dumps(about, sort_keys=True).encode())
    for term in terms:
        digest.update(repr(term).encode(errors="surrogatepass"))
    return digest.hexdigest()


def _write_header(file: IO[bytes], num_rows: int, dim: int) -> None:
    file.seek(0)
    header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, dim)}
    np.lib.format.write_array_header_1_0(file, header)
    if file.tell() != _HEADER_BYTES:
        raise RuntimeError(f"numpy wrote a header of {file.tell()} bytes")


def _stretch_file(staging: Path, first: int) -> Path:
    return staging / f"done-{first:012d}.npz"


def _num_done(staging: Path, stretch_terms: int, num_terms: int) -> int:
    done = 0
    while done < num_terms and _stretch_file(staging, done).is_file():
        done = min(done + stretch_terms, num_terms)
    return done


def _note_done(path: Path, stretch: Stretch) -> None:
    known: dict[str, Any] = {"num_rows_T": stretch.num_rows_T, "hashes_S": stretch.hashes_S}
    if stretch.sounds is not None:
        known |= vars(stretch.sounds)
    with atomic_file(path) as file:
        np.savez(file, **known)


def _known(staging: Path, firsts: range, name: str) -> NDArray[Any]:
    """What is known of the stretches that begin with these terms."""
    columns = []
    for first in firsts:
        with np.load(_stretch_file(staging, first)) as stretch:
            columns.append(stretch[name])
    return np.concatenate(columns) if columns else np.zeros(0, np.int32)


def _all_sounds(staging: Path, firsts: range, num_classes: int) -> PronunciationBank:
    classes_S, lengths_R, counts_T = (_known(staging, firsts, name) for name in ("symbols_S", "lengths_R", "counts_N"))
    owners_R = np.arange(len(counts_T), dtype=np.int32).repeat(counts_T)
    return PronunciationBank(classes_S, np.concatenate([[0], lengths_R.cumsum()]), owners_R, num_classes)
