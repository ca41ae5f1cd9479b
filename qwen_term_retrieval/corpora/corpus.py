"""Recordings and what is said in them, from the layouts people have, one `Utterance` at a time.

`read_corpus` finds out which layout a source has, or is told, and leaves the reading to one file a layout under
`readers/`. The order depends on nothing but the source. Nothing is decoded here: a broken recording shows when it is
packed, a broken manifest as soon as its row is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

import datasets
import numpy as np
import xxhash

from qwen_term_retrieval.corpora.estimates import estimated_rows
from qwen_term_retrieval.corpora.locations import (
    Location,
    entries_in,
    is_file,
    is_folder,
    joined,
    located,
    parent,
    path_of,
    suffix_of,
)
from qwen_term_retrieval.corpora.readers.folder import AUDIO_SUFFIXES, is_folder_manifest, read_audio, read_folder
from qwen_term_retrieval.corpora.readers.hf_datasets import num_rows, read_dataset, read_saved_dataset
from qwen_term_retrieval.corpora.readers.json_rows import json_rows
from qwen_term_retrieval.corpora.readers.kaldi import WAV_SCP, read_kaldi
from qwen_term_retrieval.corpora.readers.legacy_shards import is_legacy, read_legacy
from qwen_term_retrieval.corpora.readers.lhotse import is_cut, read_lhotse
from qwen_term_retrieval.corpora.readers.manifests import KIND_OF_SUFFIX, is_manifest, read_manifest
from qwen_term_retrieval.corpora.readers.nemo import read_nemo
from qwen_term_retrieval.corpora.readers.parquet_dataset import DATA, has_tables, read_parquet_dataset
from qwen_term_retrieval.corpora.readers.webdataset import TAR_SUFFIXES, read_webdataset
from qwen_term_retrieval.corpora.row_rules import RowRules
from qwen_term_retrieval.corpora.utterance import Utterance, checked_split, split_of_path
from qwen_term_retrieval.errors import CorpusError

Reader = Callable[[Location, RowRules], Iterator[Utterance]]


READERS_OF_FOLDERS: dict[str, Reader] = {
    "folder": read_folder,
    "audio": read_audio,
    "kaldi": read_kaldi,
    "webdataset": read_webdataset,
    "datasets": read_saved_dataset,
    "parquet": read_parquet_dataset,
    "legacy": read_legacy,
}
READERS_OF_FILES: dict[str, Reader] = {
    "manifest": read_manifest,
    "nemo": read_nemo,
    "lhotse": read_lhotse,
    "webdataset": read_webdataset,
}
FORMATS = tuple(dict.fromkeys((*READERS_OF_FOLDERS, *READERS_OF_FILES)))


class CorpusReader(Iterator[Utterance]):
    """The utterances of a corpus, one at a time; `name` is what messages call it.

    `estimated_rows()` is about how many there are in all; None where that is not cheap to know.
    """

    def __init__(self, name: str, utterances: Iterator[Utterance], estimated_rows: Callable[[], int | None]) -> None:
        self.name = name
        self.estimated_rows = estimated_rows
        self._utterances = utterances

    def __next__(self) -> Utterance:
        return next(self._utterances)


def read_corpus(
    source: str | Path | datasets.Dataset | datasets.DatasetDict,
    *,
    format: str = "auto",
    split: str | None = None,
    key_rule: str = "auto",
    columns: Mapping[str, str] | None = None,
    allow_pickle: bool = False,
) -> CorpusReader:
    """Iterate over the utterances of a corpus.

    >>> read_corpus("recordings/")                          # a folder of audio, with metadata.csv, .jsonl … or alone
    >>> read_corpus("terms.jsonl")                          # a manifest: JSON Lines, JSON, CSV, TSV or Parquet
    >>> read_corpus("train_manifest.json")                  # NeMo
    >>> read_corpus("data/train")                           # Kaldi: wav.scp, segments, text, utt2spk, utt2lang
    >>> read_corpus("cuts_train.jsonl.gz")                  # Lhotse
    >>> read_corpus("shards/")                              # tars in WebDataset layout
    >>> read_corpus("parquet/")                             # data/train-00000-of-00002.parquet with the audio inside
    >>> read_corpus("mmap_shards/")                         # shard_N.dat of the system before this one
    >>> read_corpus(load_dataset("user/speech"))            # any dataset with a column of audio
    >>> read_corpus("s3://bucket/recordings")               # any fsspec file system: a folder or a manifest

    Columns of a row: `audio` (or `file_name`, `audio_filepath`, `term_chunk_audio`; relative to the manifest), `key`,
    `text` (or `transcription`, `transcript`, `sentence`, `term_chunk_text`), `terms` (or
    `term_chunk_audio_ground_truth_terms`), `term_starts`, `term_ends`, `speaker`, `language`, `split`; `clip_start` and
    `clip_end` in seconds, where the clip is only that part of its recording, and `clip_channel`, from 0, where it is
    only one of its channels. `duration` is measured anew; all others pass through. In CSV and TSV, lists are split by
    `|`.

    The split is the `split` given here, else the row's, else the folder `train`, `validation` or `test` the manifest
    or the audio lies in, else the manifest's own name, else "train"; `dev`, `val`, `valid` and `eval` mean
    "validation".

    Args:
        source: folder, file, URL of either, or a dataset.
        format: one of `FORMATS`; "auto" looks at the folder, the suffix, and the first row of JSON.
        split: of all utterances.
        key_rule: how the key of a row without one follows from its audio: "path" (below the corpus, without suffix),
            "term_chunks" (below the folder of that name, as term-level corpora have it) or "auto" (the second where
            there is such a folder). A clip of a longer recording has its milliseconds (and channel) added.
        columns: names of columns that are not named as above: `{"text": "raw_text"}`.
        allow_pickle: read legacy shards whose indexes hold pickled objects. Only where you trust their maker.

    Raises:
        CorpusError: naming file, row and remedy.
        FileNotFoundError: where `source` does not exist or holds no audio.
    """
    if format not in ("auto", *FORMATS):
        raise CorpusError(f"unknown format {format!r}; known are auto, {', '.join(FORMATS)}")
    split = None if split is None else checked_split(split, "split")
    if not isinstance(source, str | Path):
        rules = RowRules(Path(), split, key_rule, columns or {})
        return CorpusReader("the dataset", read_dataset(source, rules), partial(num_rows, source))
    location = located(source)
    if is_folder(location):
        rules = RowRules(location, split, key_rule, columns or {}, allow_pickle)
        kind, readers = "folder", READERS_OF_FOLDERS
        format = _format_of_folder(location) if format == "auto" else format
    elif is_file(location):
        rules = RowRules(parent(location), split, key_rule, columns or {}, allow_pickle)
        kind, readers = "file", READERS_OF_FILES
        format = _format_of_file(location) if format == "auto" else format
    else:
        raise FileNotFoundError(f"corpus {location} does not exist; give a folder of audio or a manifest")
    if format not in readers:
        raise CorpusError(f"{location} is a {kind}; of a {kind}, the formats {', '.join(readers)} can be read")
    return CorpusReader(str(location), readers[format](location, rules), partial(estimated_rows, format, location))


def _format_of_folder(folder: Location) -> str:
    """By what lies in it, or in its folders that are named as splits."""
    entries = entries_in(folder)
    if "pack.json" in entries:
        raise CorpusError(f"{folder} is a pack already; open it with load_dataset({str(folder)!r})")
    if "dataset_dict.json" in entries or {"state.json", "dataset_info.json"} <= set(entries):
        return "datasets"
    if isinstance(folder, Path) and is_legacy(folder):
        return "legacy"
    folders = [name for name, is_one in entries.items() if is_one]
    splits = [name for name in folders if split_of_path(PurePosixPath(name, "_"))]
    names = {*entries, *(name for split in splits for name in entries_in(joined(folder, split)))}
    if WAV_SCP in names:
        return "kaldi"
    is_loose = any(is_folder_manifest(name) or PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES for name in names)
    if not is_loose and has_tables([*names, *(entries_in(joined(folder, DATA)) if DATA in folders else ())]):
        return "parquet"
    has_tars = any(name.endswith(TAR_SUFFIXES) for name in names)
    # Beside other folders, a tar is what they were unpacked from.
    return "webdataset" if has_tars and not is_loose and splits == folders else "folder"


def _format_of_file(file: Location) -> str:
    """By its suffix, and for JSON by its first row."""
    if path_of(file).name.endswith(TAR_SUFFIXES):
        return "webdataset"
    if path_of(file).name == WAV_SCP:
        raise CorpusError(f"{file}: give the folder it lies in, with the files beside it")
    if not is_manifest(file):
        raise CorpusError(
            f"{file}: no format has the suffix {suffix_of(file)!r}; known are {', '.join(KIND_OF_SUFFIX)} and .tar"
        )
    if KIND_OF_SUFFIX[suffix_of(file)] == "json":
        _, row = next(json_rows(file), ("", None))
        if is_cut(row):
            return "lhotse"
        if isinstance(row, Mapping) and "audio_filepath" in row:
            return "nemo"
    return "manifest"


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
