"""`load_dataset` for packs and for corpora.

A pack is opened where it lies (one on the Hub: where `huggingface_hub` keeps it); only its tables, a few hundred bytes
a clip, go through the cache of `datasets`. A corpus is packed first, once, into a folder of that cache, or with
`packed=False` served from its own files. All give the same rows.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import xxhash
from datasets.builder import Key
from filelock import FileLock
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from pyarrow import parquet

from qwen_term_retrieval.corpora.corpus import read_corpus
from qwen_term_retrieval.corpora.readers.folder import is_folder_manifest
from qwen_term_retrieval.corpora.readers.legacy_shards import is_legacy, legacy_utterances
from qwen_term_retrieval.corpora.readers.manifests import is_manifest
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.errors import CorpusError, PackError
from qwen_term_retrieval.packs.format.pack_json import PACK_JSON, PACK_LAYOUT, read_pack_json
from qwen_term_retrieval.packs.format.verification import check_files
from qwen_term_retrieval.packs.loose import LooseCorpus
from qwen_term_retrieval.packs.pack import Pack, is_pack
from qwen_term_retrieval.packs.packing import SAMPLING_RATE, SHARD_BYTES, pack_corpus
from qwen_term_retrieval.packs.row_schema import conformed
from qwen_term_retrieval.registration import ContentKeyedBuilder

ROWS_PER_BATCH = 65_536
_ON_HUB = re.compile(r"hf://datasets/(?P<repo_id>[^@]+)@(?P<revision>[^/]+)(/(?P<path>.*))?")


@dataclass
class TermAudioConfig(datasets.BuilderConfig):
    """How a corpus is opened; of a pack that exists already, only `verify` matters.

    Attributes:
        packed: True packs the corpus once, into the cache of `datasets`: as large as its audio in int16, and forty
            times faster to read at random than FLAC. False packs nothing: rows decode the corpus' own files each time
            they are read. "auto" is False until the corpus has a pack in the cache, and then that pack; for
            saved datasets and legacy shards, which have no such files, it is True.
        sampling_rate: of the samples, in Hz.
        shard_bytes: upper bound of a shard of the pack.
        on_error: what becomes of bad audio: "raise", "skip" the row, or pack one second of "silence".
        verify: check tables before they are prepared, and the CRC of a clip each time that its samples are read.
        allow_pickle: read legacy shards whose index holds pickled objects; only if you trust who made them.
    """

    packed: bool | str = True
    sampling_rate: int = SAMPLING_RATE
    shard_bytes: int = SHARD_BYTES
    on_error: str = "raise"
    verify: bool = False
    allow_pickle: bool = False


class TermAudio(ContentKeyedBuilder):
    """Builder behind `load_dataset("term_audio", …)`, and behind folders of `.termaudio` manifests or shards.

    >>> load_dataset("term_audio", data_dir="recordings")                     # whatever `read_corpus` reads
    >>> load_dataset("term_audio", data_files={"train": "train.jsonl"})       # a manifest a split
    >>> load_dataset("term_audio", data_dir="recordings", packed=False)       # nothing is packed
    >>> load_dataset("packs/mine", verify=True)                               # a pack; or "user/pack", on the Hub

    In a folder of more than a few thousand files, name the manifest too: `data_dir="recordings",
    data_files="metadata.jsonl"`. Left to guess, datasets 5.2 walks through the folder dozens of times.
    """

    BUILDER_CONFIG_CLASS = TermAudioConfig
    config: TermAudioConfig
    # In batches of the usual 1,000 rows, a table of five million takes a second to map.
    DEFAULT_WRITER_BATCH_SIZE = ROWS_PER_BATCH

    def __init__(self, cache_dir: str | None = None, **kwargs: Any) -> None:
        # Needed before `datasets` sets its own names for it.
        self._cache_root = Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser()
        super().__init__(cache_dir, **kwargs)

    def content_key(self, config: datasets.BuilderConfig) -> str:
        """A pack is keyed by its content, wherever it lies; a corpus by paths, sizes and times of its data files."""
        if config.packed not in (True, False, "auto"):
            raise ValueError(f"packed={config.packed!r}; it must be True, False or 'auto'")
        given = self._given_pack(config)
        if given is not None:
            return "" if self.repo_id else read_pack_json(given)["checksum"]
        digest = xxhash.xxh3_64(f"{PACK_LAYOUT}\n".encode())
        for file in _data_files(config):
            digest.update(f"{file}\n".encode())
            if not _ON_HUB.match(file):
                status = Path(file).stat()
                digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        settings = (config.sampling_rate, config.shard_bytes, config.on_error, config.allow_pickle)
        pack_key = xxhash.xxh3_64_hexdigest(f"{digest.hexdigest()} {settings}".encode())
        self._own_pack = self._cache_root / "term_audio_packs" / pack_key
        self._packed = config.packed is True or (config.packed == "auto" and is_pack(self._own_pack))
        key = "" if self.repo_id else digest.hexdigest()
        return key if self._packed else f"{key}loose"

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().download_and_prepare(*args, **kwargs)
        except datasets.exceptions.DatasetGenerationError as error:
            # Its message says nothing; ours name file, row and remedy.
            if isinstance(error.__cause__, CorpusError | PackError):
                raise error.__cause__ from None
            raise
        # The tables may come from the cache; the shards must be known to this process all the same.
        self._open_pack()

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        options = dl_manager.download_config
        pack = self._open_pack(num_workers=options.num_proc or 1, anew=options.force_download)
        if pack is None and self.config.packed == "auto" and self._is_in_memory():
            self._packed = True
            pack = self._open_pack(num_workers=options.num_proc or 1)
        if pack is None:
            corpus = LooseCorpus(self._utterances(), self.config.sampling_rate, self.config.on_error)
            self.info.features = corpus.features
            return [datasets.SplitGenerator(split, {"files": [split], "corpus": corpus}) for split in corpus.splits]
        if self.config.verify:
            check_files(pack.folder, (table.name for split in pack.splits for table in pack.tables(split)))
        self.info.features = datasets.Features.from_arrow_schema(pack.schema)
        if self.config.verify:
            self.info.features["audio"] = replace(self.info.features["audio"], verify=True)
        return [
            datasets.SplitGenerator(split, {"files": [str(file) for file in pack.tables(split)]})
            for split in pack.splits
        ]

    def _is_in_memory(self) -> bool:
        """Whether the corpus has no files that rows could refer to, as saved datasets and legacy shards have none."""
        first = next(self._utterances()(), None)
        return first is not None and isinstance(first.audio, bytes | np.ndarray)

    def _generate_tables(self, files: list[str], corpus: LooseCorpus | None = None) -> Iterator[tuple[Key, pa.Table]]:
        if corpus is not None:
            yield from ((Key(0, number), table) for number, table in enumerate(corpus.tables(files[0])))
            return
        schema = self.info.features.arrow_schema
        for number, name in enumerate(files):
            try:
                with parquet.ParquetFile(name) as file:
                    for batch_number, batch in enumerate(file.iter_batches(ROWS_PER_BATCH)):
                        yield Key(number, batch_number), conformed(pa.Table.from_batches([batch]), schema)
            except (pa.ArrowException, OSError) as error:
                raise PackError(f"{name}: damaged table ({error}). Copy the pack again, or pack anew.") from error

    def _open_pack(self, num_workers: int = 1, *, anew: bool = False) -> Pack | None:
        """The pack that the data files are, or else the one made of them, made now; None to serve them loose."""
        given = self._given_pack(self.config, whole=True)
        if given is not None:
            return Pack.open(given)
        if not self._packed:
            return None
        folder = self._own_pack
        if anew and folder.exists():
            shutil.rmtree(folder)
        if not is_pack(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            # The ranks of a distributed run come here at once: one packs, the others wait and open.
            with FileLock(f"{folder}.lock"):
                if not is_pack(folder):
                    self._pack(folder, num_workers)
        return Pack.open(folder)

    def _pack(self, folder: Path, num_workers: int) -> None:
        summary = pack_corpus(
            self._utterances()(),
            folder,
            sampling_rate=self.config.sampling_rate,
            shard_bytes=self.config.shard_bytes,
            num_workers=num_workers,
            on_error=self.config.on_error,
            quiet=not datasets.is_progress_bar_enabled(),
        )
        datasets.logging.get_logger(__name__).info("%s", summary)

    def _given_pack(self, config: datasets.BuilderConfig, *, whole: bool = False) -> Path | None:
        """The folder of the pack that the data files lie in, if they do; of one on the Hub, all files if `whole`."""
        if config.data_dir is not None:
            folder = self._data_dir(config)
            if is_pack(folder):
                return folder
        first = next(iter(_data_files(config)))
        on_hub = _ON_HUB.match(first)
        if on_hub is None:
            return Path(first).parent if is_pack(Path(first).parent) else None
        inside = on_hub["path"].rpartition("/")[0]
        name, revision = on_hub["repo_id"], on_hub["revision"]
        try:
            pack_json = hf_hub_download(
                name, f"{inside}/{PACK_JSON}".lstrip("/"), repo_type="dataset", revision=revision, token=self.token
            )
        except RemoteEntryNotFoundError:
            return None
        if whole:
            _snapshot(name, revision, self.token, f"{inside}/*".lstrip("/"))
        return Path(pack_json).parent

    def _data_dir(self, config: datasets.BuilderConfig) -> Path:
        return Path(self.base_path or "", config.data_dir).expanduser()

    def _utterances(self) -> Callable[[], Iterator[Utterance]]:
        """Begins the corpus anew at each call; files on the Hub are downloaded, with the audio beside them."""
        files = {str(split): [self._local(file) for file in files] for split, files in self.config.data_files.items()}
        is_local = self.config.data_dir is not None and not _ON_HUB.match(self.base_path or "")
        folder = self._data_dir(self.config) if is_local else None
        return partial(_read, files, folder, self.config.allow_pickle)

    def _local(self, file: str) -> str:
        on_hub = _ON_HUB.match(file)
        if on_hub is None:
            return file
        return str(_snapshot(on_hub["repo_id"], on_hub["revision"], self.token) / on_hub["path"])


@cache
def _snapshot(repo_id: str, revision: str, token: str | bool | None, files: str | None = None) -> Path:
    folder = snapshot_download(repo_id, repo_type="dataset", revision=revision, token=token, allow_patterns=files)
    return Path(folder)


def _data_files(config: datasets.BuilderConfig) -> Iterator[str]:
    for files in config.data_files.values():
        for file in files:
            if "://" in file and not _ON_HUB.match(file):
                raise CorpusError(f"{file}: read_corpus and `qtr pack` read URLs; load_dataset needs a local copy")
            yield str(file)


def _read(files: dict[str, list[str]], folder: Path | None, allow_pickle: bool) -> Iterator[Utterance]:
    """What a folder, or else manifests of each split, hold."""
    first = next(Path(file) for of_split in files.values() for file in of_split)
    if is_legacy(folder or first.parent):
        return legacy_utterances(folder or first.parent, allow_pickle)
    names = [Path(file).name for of_split in files.values() for file in of_split]
    # Manifests that a folder is not known by, `train.jsonl` beside its audio, are read because they are named.
    if folder is not None and not all(is_manifest(Path(name)) and not is_folder_manifest(name) for name in names):
        return read_corpus(folder)
    return _read_manifests(files)


def _read_manifests(files: dict[str, list[str]]) -> Iterator[Utterance]:
    for split, of_split in files.items():
        for file in of_split:
            if not is_manifest(Path(file)):
                raise CorpusError(
                    f"{file}: data_files must name manifests (.jsonl, .json, .csv, .tsv, .parquet, .termaudio); "
                    "for a folder of audio use data_dir"
                )
            yield from read_corpus(file, split=split)
