"""Folders of audio: with metadata, with manifests, or with audio alone.

Metadata is `metadata.{csv,tsv,jsonl,parquet}` as `audiofolder` of `datasets` has it; manifests are `.termaudio` files.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import PurePosixPath

from qwen_term_retrieval.audio.sources import AUDIO_SUFFIXES
from qwen_term_retrieval.corpora.locations import Location, joined, path_of, walk
from qwen_term_retrieval.corpora.readers.manifests import MANIFEST_SUFFIX, is_manifest, read_manifest
from qwen_term_retrieval.corpora.row_rules import RowRules, to_utterance
from qwen_term_retrieval.corpora.utterance import Utterance, split_of_path, split_rank
from qwen_term_retrieval.errors import CorpusError

METADATA = {f"metadata{suffix}{gz}" for suffix in (".csv", ".tsv", ".jsonl", ".parquet") for gz in ("", ".gz")}


def read_folder(folder: Location, rules: RowRules) -> Iterator[Utterance]:
    """Yield the utterances of every manifest below a folder, or else every audio file, without text or terms.

    Raises:
        CorpusError: two tables in one folder, or a manifest of a name that none is looked for by.
        FileNotFoundError: neither manifest nor audio.
    """
    manifests = find_manifests(folder)
    if manifests:
        return (utterance for file in manifests for utterance in read_manifest(file, rules))
    tables = filter(is_manifest, (joined(folder, name) for name in walk(folder)))
    overlooked = next((table for table in tables if _describes_audio(table, rules)), None)
    if overlooked is not None:
        raise CorpusError(
            f"{folder}: {path_of(overlooked).name} describes audio, but a folder is read by metadata.csv, .tsv, .jsonl "
            f"or .parquet. Give {overlooked} itself, rename it, or take the audio alone: format='audio'"
        )
    return read_audio(folder, rules)


def is_folder_manifest(name: str) -> bool:
    """Whether a file of this name describes the audio around it."""
    return name in METADATA or name.removesuffix(".gz").endswith(MANIFEST_SUFFIX)


def find_manifests(folder: Location) -> list[Location]:
    """The `.termaudio` files and `metadata.*` tables below a folder, split by split."""
    found: list[PurePosixPath] = []
    for place, files in groupby(map(PurePosixPath, walk(folder)), key=lambda file: file.parent):
        named = [file for file in files if is_folder_manifest(file.name)]
        tables = [file.name for file in named if file.name in METADATA]
        if len(tables) > 1:
            raise CorpusError(f"{joined(folder, str(place))} holds {' and '.join(tables)}; keep the one to be read")
        found += named
    found.sort(key=lambda file: split_rank(split_of_path(file) or "train"))
    return [joined(folder, str(file)) for file in found]


def _describes_audio(file: Location, rules: RowRules) -> bool:
    try:
        return next(read_manifest(file, rules), None) is not None
    except (CorpusError, OSError):
        return False


def read_audio(folder: Location, rules: RowRules) -> Iterator[Utterance]:
    """Yield every audio file below a folder, without text or terms.

    Raises:
        FileNotFoundError: there is none.
    """
    found = False
    for name in walk(folder):
        path = PurePosixPath(name)
        if path.suffix.lower() in AUDIO_SUFFIXES:
            found = True
            yield to_utterance(
                {"audio": name}, str(folder), folder, rules, folder_split=split_of_path(path.parent / "_")
            )
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no audio and no manifest (metadata.csv, .jsonl, .parquet, *.termaudio); "
            "give a manifest of another name by its own path"
        )
