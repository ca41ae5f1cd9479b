"""An open pack: what is in it, and whether it is whole."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from huggingface_hub import HfApi
from pyarrow import parquet

from qwen_term_retrieval.corpora.utterance import split_rank
from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.feature import Clip
from qwen_term_retrieval.packs.format.key_index import KeyTable
from qwen_term_retrieval.packs.format.open_shards import register_pack
from qwen_term_retrieval.packs.format.pack_json import PACK_JSON, read_pack_json, shards_of
from qwen_term_retrieval.packs.format.shards import DTYPE, HEADER_BYTES, ShardHeader, ShardIndex, index_of
from qwen_term_retrieval.packs.format.verification import check_files
from qwen_term_retrieval.packs.row_schema import CARD, SplitTotals, split_totals, united_schema
from qwen_term_retrieval.storage.checksums import damages_found, file_xxh64

_KEYS_TO_COMPARE = 2000


@dataclass(frozen=True)
class KeyedClip:
    """A clip found by its key; `row` counts within the split, as `load_dataset` gives it."""

    key: str
    split: str
    row: int
    clip: Clip


@dataclass(frozen=True)
class Pack:
    """A pack on disk. Use `Pack.open(folder)`; rows come from `load_dataset(folder)`.

    `content` is what `pack.json` says; when `verified`, clips prove their samples each time they give them.

    >>> pack = Pack.open("packs/mine")
    >>> pack.find("train/0001").clip.pcm        # int16 (num_samples,)
    """

    folder: Path
    content: dict[str, Any]
    verified: bool = False

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> Pack:
        """Open a pack and enter its shards into the table of known locations. Costs one small file.

        Args:
            verify: check tables and indexes now, and the CRC of each clip of `find` whenever its samples are read;
                the method `verify` reads all there is instead.

        Raises:
            PackError: not a pack, `pack.json` damaged, or of another version; with `verify`, a damaged table or index.
        """
        folder = Path(folder).absolute()
        pack = cls(folder, read_pack_json(folder), verify)
        if verify:
            check_files(folder, pack.content["files"])
        register_pack(folder)
        return pack

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the mapped key indexes, which would travel as copies.
        return Pack, (self.folder, self.content, self.verified)

    def __len__(self) -> int:
        return self.num_clips

    @property
    def uuid(self) -> str:
        return self.content["uuid"]

    @property
    def sampling_rate(self) -> int:
        return self.content["sampling_rate"]

    @property
    def increments(self) -> list[dict[str, Any]]:
        """What was packed, appended or merged in, in the order of the rows."""
        return self.content["increments"]

    @property
    def splits(self) -> list[str]:
        names = {split for increment in self.increments for split in increment["splits"]}
        return sorted(names, key=split_rank)

    @property
    def shards(self) -> list[dict[str, Any]]:
        """`{"file", "uid", "bytes", "xxh64", "clips"}` of each shard."""
        return shards_of(self.content)

    @property
    def file_names(self) -> list[str]:
        """All files that make the pack; the card comes on top."""
        return [*(shard["file"] for shard in self.shards), *self.content["files"], PACK_JSON]

    @property
    def num_clips(self) -> int:
        return sum(totals.num_clips for totals in self.totals.values())

    @property
    def totals(self) -> dict[str, SplitTotals]:
        """Clips and seconds of each split."""
        return split_totals(self.increments)

    def tables(self, split: str) -> list[Path]:
        """The Parquet files of a split, in the order of its rows."""
        return [
            self.folder / increment["splits"][split]["file"]
            for increment in self.increments
            if split in increment["splits"]
        ]

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema of the rows of all splits, with the features of `datasets`; see `row_schema.conformed`."""
        files = [self.folder / split["file"] for increment in self.increments for split in increment["splits"].values()]
        return united_schema([_schema_of(file) for file in files], self.sampling_rate)

    def find(self, key: str) -> KeyedClip:
        """The clip of a key, found in a memory-mapped index.

        Raises:
            PackError: no clip has it; the message names keys like it.
        """
        found = self.get(key)
        if found is None:
            near = self._near(key)
            raise PackError(
                f"{self.folder}: no clip has the key {key!r}"
                + (f"; near it are {', '.join(map(repr, near))}" if near else "")
            )
        return found

    def get(self, key: str) -> KeyedClip | None:
        """As `find`, but None where no clip has the key."""
        for number, table in enumerate(self.key_tables):
            place = table.find(key)
            if place is not None:
                before = self.increments[:number]
                first = sum(increment["splits"].get(place.split, {"num_clips": 0})["num_clips"] for increment in before)
                clip = Clip(place.shard, place.offset, place.length, self.sampling_rate, self.verified)
                return KeyedClip(key, place.split, first + place.row, clip)
        return None

    def keys(self) -> Iterator[str]:
        """All keys, increment by increment, in no useful order."""
        for table in self.key_tables:
            yield from table.keys()

    @cached_property
    def key_tables(self) -> list[KeyTable]:
        """The key index of each increment."""
        return [KeyTable(self.folder / increment["keys"]) for increment in self.increments]

    def shard_headers(self, increment: int) -> list[ShardHeader]:
        """Headers of the shards of an increment, as the files have them.

        Raises:
            PackError: one is damaged; FileNotFoundError: one is missing.
        """
        return [ShardHeader.read(self.folder / shard["file"]) for shard in self.increments[increment]["shards"]]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a pack",
        token: str | None = None,
    ) -> str:
        """Upload the files of the pack, its card included, as one commit to a dataset repository; returns its URL.

        `huggingface_hub.snapshot_download(repo_id, repo_type="dataset")` gives a folder that `load_dataset` opens.

        Args:
            private: make the repository private if it is made now.
            revision: branch to commit to, made if need be.

        Raises:
            PackError: a file is missing.
        """
        missing = [name for name in self.file_names if not (self.folder / name).is_file()]
        if missing:
            raise PackError(f"{self.folder} lacks {', '.join(missing)}. Copy the pack again")
        hub = HfApi(token=token)
        repository = hub.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(repository.repo_id, branch=revision, repo_type="dataset", exist_ok=True)
        hub.upload_folder(
            repo_id=repository.repo_id,
            folder_path=self.folder,
            repo_type="dataset",
            revision=revision,
            commit_message=commit_message,
            allow_patterns=[*self.file_names, CARD],
        )
        return str(repository)

    def _near(self, key: str) -> list[str]:
        folder = key.rpartition("/")[0]
        for prefix in dict.fromkeys((key[: len(folder) + 3], folder, "")):
            likely = [k for table in self.key_tables for k in table.starting_with(prefix, _KEYS_TO_COMPARE)]
            if near := get_close_matches(key, likely, 3):
                return near
        return []

    def verify(self, *, quiet: bool = True) -> list[str]:
        """Read every byte and compare with the checksums; one line per damage found, naming file and clips.

        An empty list means: not a bit differs from what was packed (`README.md` aside).
        """
        try:
            read_pack_json(self.folder)
        except PackError as error:
            return [str(error)]
        return damages_found(self.folder, self.content["files"], self.shards, self._shard_damage, quiet=quiet)

    def _shard_damage(self, shard: dict[str, Any]) -> Iterator[str]:
        path = self.folder / shard["file"]
        try:
            header = ShardHeader.read(path)
        except FileNotFoundError:
            yield f"{path}: missing"
            return
        except PackError as error:
            yield str(error)
            return
        if header.uid != shard["uid"]:
            yield f"{path}: a shard of another pack ({header.pack_uuid})"
        elif file_xxh64(path, skip=HEADER_BYTES) != shard["xxh64"]:
            yield f"{path}: damaged; {self._damaged_clips(path)}"

    def _damaged_clips(self, path: Path) -> str:
        try:
            index = ShardIndex.load(index_of(path))
        except PackError:
            return "its index is damaged too, so which clips cannot be told"
        samples = np.memmap(path, DTYPE, "r")
        damaged = [
            key
            for key, offset, length, crc32 in zip(index.keys, index.offset, index.length, index.crc32, strict=True)
            if zlib.crc32(samples[offset : offset + length].data) != crc32
        ]
        return f"clips {', '.join(damaged[:10])}{' …' if len(damaged) > 10 else ''}" if damaged else "between clips"

    def inspect(self) -> str:
        """What is in the pack, as text for a terminal."""
        increments = self.increments
        lines = [
            f"{self.folder}",
            f"  pack {self.uuid}, format {self.content['version']}, {self.sampling_rate} Hz int16 mono",
        ]
        for name, split in self.totals.items():
            lines.append(
                f"  {name:<12} {split.num_clips:>9} clips  {split.duration_s / 3600:>8.2f} h  "
                f"{split.num_no_term_clips:>8} without a term"
            )
        num_bytes = sum(shard["bytes"] for shard in self.shards)
        lines.append(f"  {len(self.shards)} shards, {num_bytes / 1e6:.1f} MB; columns: {', '.join(self.schema.names)}")
        if len(increments) > 1:
            lines.append(f"  {len(increments)} increments, packed one after another or merged")
        if num_clipped := sum(increment["num_clipped_samples"] for increment in increments):
            lines.append(f"  {num_clipped} samples were out of range and clipped")
        for problem in (problem for increment in increments for problem in increment["problems"]):
            lines.append(f"  {problem['action']}: {problem['where']}: {problem['problem']}")
        lines += ["  first clips:", *(f"    {line}" for line in self._first_clips(5))]
        return "\n".join(lines)

    def _first_clips(self, count: int) -> Iterator[str]:
        with parquet.ParquetFile(self.tables(self.splits[0])[0]) as file:
            batch = next(file.iter_batches(batch_size=count, columns=["key", "duration", "text", "terms"]))
        for row in batch.to_pylist():
            yield f"{row['key']}  {row['duration']:.2f} s  {row['text']!r}  terms: {row['terms']}"


def _schema_of(table: Path) -> pa.Schema:
    try:
        return parquet.read_schema(table)
    except FileNotFoundError as error:
        raise PackError(f"{table} is missing. Copy the pack again, or pack the corpus again.") from error
    except (OSError, ValueError) as error:
        raise PackError(f"{table}: damaged table ({error}). Copy the pack again, or pack anew.") from error


def is_pack(folder: Path) -> bool:
    return (folder / PACK_JSON).is_file()
