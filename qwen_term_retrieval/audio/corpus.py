"""Recordings and what is said in them, from the layouts people have, one `Utterance` at a time.

`read_corpus` takes a folder (audio with `metadata.{csv,tsv,jsonl,parquet}`, `.termaudio` manifests, or audio alone) or
one manifest, and yields in an order that depends on nothing but the source. Nothing is decoded here: a broken
recording shows when it is packed, a broken manifest as soon as its row is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import xxhash

from qwen_term_retrieval.audio.manifests import MANIFEST_SUFFIX, read_manifest
from qwen_term_retrieval.audio.utterance import (
    CorpusError,
    Utterance,
    default_key,
    split_of_path,
    split_rank,
)

__all__ = ["CorpusError", "Utterance", "read_corpus"]

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
AUDIO_SUFFIXES = frozenset(f".{name.lower()}" for name in soundfile.available_formats()) | {".opus", ".aif", ".oga"}


def read_corpus(source: str | Path, *, split: str | None = None) -> Iterator[Utterance]:
    """Yield the utterances of a folder or manifest.

    Manifests hold one row a clip, in JSON Lines (`.jsonl`, `.termaudio`), a JSON list, CSV/TSV (lists split by `|`) or
    Parquet. Columns: `audio` (or `file_name`, `audio_filepath`, `term_chunk_audio`; relative to the manifest), `key`,
    `text` (or `transcription`, `transcript`, `sentence`, `term_chunk_text`), `terms` (or
    `term_chunk_audio_ground_truth_terms`), `term_starts`, `term_ends`, `speaker`, `language`, `split`; `duration` is
    measured anew; all others pass through. A key is, unless given, the audio path below the corpus without its suffix.

    The split is the `split` given here, else the row's, else the folder `train`, `validation` or `test` the audio lies
    in, else the manifest's own name, else "train"; `dev`, `val`, `valid` and `eval` mean "validation".

    Raises:
        CorpusError: naming file, row and remedy.
        FileNotFoundError: where `source` does not exist or holds no audio.
    """
    path = Path(source)
    if path.is_file():
        return read_manifest(path, root=path.parent, split=split)
    if not path.is_dir():
        raise FileNotFoundError(f"corpus {path} does not exist; give a folder of audio or a manifest")
    if (path / "pack.json").is_file():
        raise CorpusError(f"{path} is a pack already; open it with load_dataset({str(path)!r})")
    manifests = find_manifests(path)
    if manifests:
        return (utterance for file in manifests for utterance in read_manifest(file, root=path, split=split))
    return _read_bare_audio(path, split)


def find_manifests(folder: Path) -> list[Path]:
    """The `.termaudio` files and `metadata.*` tables under a folder, split by split."""
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        tables = sorted(name for name in files if name in {f"metadata{suffix}" for suffix in TABLE_SUFFIXES})
        if len(tables) > 1:
            raise CorpusError(f"{parent} holds {' and '.join(tables)}; keep the one to be read")
        found += [Path(parent, name) for name in (*tables, *sorted(n for n in files if n.endswith(MANIFEST_SUFFIX)))]
    return sorted(found, key=lambda file: split_rank(split_of_path(file.relative_to(folder)) or "train"))


def _read_bare_audio(root: Path, split: str | None) -> Iterator[Utterance]:
    """Every audio file of a folder without manifests: no text, no terms."""
    found = False
    for parent, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if path.suffix.lower() in AUDIO_SUFFIXES:
                found = True
                of_folder = split_of_path(path.relative_to(root).parent / "_")
                yield Utterance(default_key(path, root), path, split=split or of_folder or "train", source=str(root))
    if not found:
        raise FileNotFoundError(f"{root} holds no audio and no manifest (metadata.csv, .jsonl, .parquet, *.termaudio)")


class SeenKeys:
    """Finds repeated keys in 8 bytes a key: sorted hashes, merged in batches."""

    MERGE_AT = 1 << 16

    def __init__(self) -> None:
        self._sorted = np.zeros(0, np.uint64)
        self._recent: set[int] = set()

    def add(self, key: str) -> bool:
        """Remember a key; True where it was there before."""
        digest = xxhash.xxh3_64_intdigest(key.encode())
        position = int(np.searchsorted(self._sorted, np.uint64(digest)))
        seen = digest in self._recent or (position < len(self._sorted) and int(self._sorted[position]) == digest)
        self._recent.add(digest)
        if len(self._recent) >= self.MERGE_AT:
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted = np.union1d(self._sorted, recent)
            self._recent.clear()
        return seen


def with_unique_keys(utterances: Iterable[Utterance]) -> Iterator[Utterance]:
    """Pass utterances through.

    Raises:
        CorpusError: at the second utterance of one key.
    """
    seen = SeenKeys()
    for utterance in utterances:
        if seen.add(utterance.key):
            raise CorpusError(f"{utterance.where}: an earlier row has the same key; give each row a key of its own")
        yield utterance
