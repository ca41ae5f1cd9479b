"""`load_dataset` for packs and for corpora.

A pack is opened where it lies; only its tables, a few hundred bytes a clip, go through the cache of `datasets`. A
corpus is packed first, once, into a folder beside its entry in that cache. Both give rows whose audio is a reference
into memory-mapped shards.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import xxhash
from datasets.builder import Key
from filelock import FileLock
from pyarrow import parquet

from qwen_term_retrieval.audio.corpus import read_corpus
from qwen_term_retrieval.audio.manifests import is_manifest
from qwen_term_retrieval.audio.pack import Pack, is_pack
from qwen_term_retrieval.audio.pack_json import PACK_LAYOUT, read_pack_json
from qwen_term_retrieval.audio.packing import SAMPLING_RATE, SHARD_BYTES, pack_corpus
from qwen_term_retrieval.audio.tables import conformed
from qwen_term_retrieval.audio.utterance import CorpusError, Utterance
from qwen_term_retrieval.registration import ContentKeyedBuilder

ROWS_PER_BATCH = 8192


@dataclass
class TermAudioConfig(datasets.BuilderConfig):
    """How a corpus is packed: rate in Hz, bytes a shard, and what to do with bad audio (raise, skip, silence).

    A pack that exists already is taken as it is.
    """

    sampling_rate: int = SAMPLING_RATE
    shard_bytes: int = SHARD_BYTES
    on_error: str = "raise"


class TermAudio(ContentKeyedBuilder):
    """Builder behind `load_dataset("term_audio", …)`, and behind folders of `.termaudio` manifests or shards."""

    BUILDER_CONFIG_CLASS = TermAudioConfig
    config: TermAudioConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Now, because `cache_dir` names a scratch folder while `datasets` prepares.
        self._own_pack = Path(f"{self.cache_dir}-pack")

    def content_key(self, config: datasets.BuilderConfig) -> str:
        """A pack is keyed by its content, wherever it lies; a corpus by paths, sizes and times of its data files."""
        pack = self._given_pack(config)
        if pack is not None:
            return f"{read_pack_json(pack)['checksum']}"
        digest = xxhash.xxh3_64(f"{PACK_LAYOUT}\n".encode())
        for file in (file for files in config.data_files.values() for file in files):
            status = Path(file).stat()
            digest.update(f"{file}\n{status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        super().download_and_prepare(*args, **kwargs)
        # The tables may come from the cache; the shards must be known to this process all the same.
        self._open_pack()

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        options = dl_manager.download_config
        pack = self._open_pack(num_workers=options.num_proc or 1, anew=options.force_download)
        self.info.features = datasets.Features.from_arrow_schema(pack.schema)
        return [
            datasets.SplitGenerator(split, {"files": [str(file) for file in pack.tables(split)]})
            for split in pack.splits
        ]

    def _generate_tables(self, files: list[str]) -> Iterator[tuple[Key, pa.Table]]:
        schema = self.info.features.arrow_schema
        for number, name in enumerate(files):
            with parquet.ParquetFile(name) as file:
                for batch_number, batch in enumerate(file.iter_batches(ROWS_PER_BATCH)):
                    yield Key(number, batch_number), conformed(pa.Table.from_batches([batch]), schema)

    def _open_pack(self, num_workers: int = 1, *, anew: bool = False) -> Pack:
        """The pack that the data files are, or else the one made of them, made now if it is not there."""
        given = self._given_pack(self.config)
        if given is not None:
            return Pack.open(given)
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
            self._utterances(),
            folder,
            sampling_rate=self.config.sampling_rate,
            shard_bytes=self.config.shard_bytes,
            num_workers=num_workers,
            on_error=self.config.on_error,
            quiet=not datasets.is_progress_bar_enabled(),
        )
        datasets.logging.get_logger(__name__).info("%s", summary)

    def _given_pack(self, config: datasets.BuilderConfig) -> Path | None:
        if config.data_dir is not None:
            folder = Path(self.base_path or "", config.data_dir).expanduser()
            if is_pack(folder):
                return folder
        first = next(file for files in config.data_files.values() for file in files)
        if "://" in first:
            raise CorpusError(
                f"{first}: download it first (huggingface_hub.snapshot_download) and load the local folder"
            )
        return Path(first).parent if is_pack(Path(first).parent) else None

    def _utterances(self) -> Iterator[Utterance]:
        if self.config.data_dir is not None:
            yield from read_corpus(Path(self.base_path or "", self.config.data_dir).expanduser())
            return
        for split, files in self.config.data_files.items():
            for file in files:
                if not is_manifest(Path(file)):
                    raise CorpusError(
                        f"{file}: data_files must name manifests (.jsonl, .json, .csv, .tsv, .parquet, .termaudio); "
                        "for a folder of audio use data_dir"
                    )
                yield from read_corpus(file, split=str(split))
