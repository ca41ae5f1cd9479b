"""An open pack: what is in it, and whether it is whole."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet
from tqdm import tqdm

from qwen_term_retrieval.audio.locations import register_pack
from qwen_term_retrieval.audio.pack_json import PACK_JSON, file_xxh64, read_pack_json
from qwen_term_retrieval.audio.sealing import index_name
from qwen_term_retrieval.audio.shards import DTYPE, HEADER_BYTES, PackError, ShardHeader, ShardIndex


@dataclass(frozen=True)
class Pack:
    """A pack on disk. Use `Pack.open(folder)`; rows come from `load_dataset(folder)`.

    `content` is what `pack.json` says.
    """

    folder: Path
    content: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Pack:
        """Open a pack and enter its shards into the table of known locations. Costs one small file.

        Raises:
            PackError: not a pack, `pack.json` damaged, or of another version.
        """
        folder = Path(folder).absolute()
        content = read_pack_json(folder)
        register_pack(folder)
        return cls(folder, content)

    @property
    def uuid(self) -> str:
        return self.content["uuid"]

    @property
    def sampling_rate(self) -> int:
        return self.content["sampling_rate"]

    @property
    def splits(self) -> list[str]:
        return list(self.content["splits"])

    @property
    def num_clips(self) -> int:
        return sum(split["num_clips"] for split in self.content["splits"].values())

    def table(self, split: str) -> Path:
        """The Parquet file of a split."""
        return self.folder / self.content["splits"][split]["file"]

    def verify(self, *, quiet: bool = True) -> list[str]:
        """Read every byte and compare with the checksums; one line per damage found, naming file and clips.

        An empty list means: not a bit differs from what was packed (`README.md` aside).
        """
        try:
            read_pack_json(self.folder)
        except PackError as error:
            return [str(error)]
        checks = [*self._checks()]
        total = sum(num_bytes for _, num_bytes in checks)
        damages: list[str] = []
        with tqdm(
            total=total, unit="B", unit_scale=True, desc="verifying", disable=True if quiet else None
        ) as progress:
            for check, num_bytes in checks:
                damages += check()
                progress.update(num_bytes)
        return damages

    def _checks(self) -> Iterator[tuple[Callable[[], Iterator[str]], int]]:
        for name, expected in self.content["files"].items():
            yield partial(self._verify_file, name, expected), expected["bytes"]
        for number, shard in enumerate(self.content["shards"]):
            yield partial(self._verify_shard, number, shard), shard["bytes"]

    def _verify_file(self, name: str, expected: dict[str, Any]) -> Iterator[str]:
        path = self.folder / name
        if not path.is_file():
            yield f"{path}: missing"
        elif file_xxh64(path) != expected["xxh64"]:
            yield f"{path}: damaged"

    def _verify_shard(self, number: int, shard: dict[str, Any]) -> Iterator[str]:
        path = self.folder / shard["file"]
        try:
            with path.open("rb") as file:
                header = ShardHeader.read(file, str(path))
        except FileNotFoundError:
            yield f"{path}: missing"
            return
        except PackError as error:
            yield str(error)
            return
        if header.uid != shard["uid"]:
            yield f"{path}: a shard of another pack ({header.pack_uuid})"
        elif file_xxh64(path, skip=HEADER_BYTES) != shard["xxh64"]:
            yield f"{path}: damaged; {self._damaged_clips(number, path)}"

    def _damaged_clips(self, number: int, path: Path) -> str:
        try:
            index = ShardIndex.load(self.folder / index_name(number))
        except PackError:
            return "its index is damaged too, so which clips cannot be told"
        damaged = [
            key
            for key, offset, length, crc32 in zip(index.keys, index.offset, index.length, index.crc32, strict=True)
            if zlib.crc32(np.memmap(path, DTYPE, "r", offset=0)[offset : offset + length].data) != crc32
        ]
        return f"clips {', '.join(damaged[:10])}{' …' if len(damaged) > 10 else ''}" if damaged else "between clips"

    def inspect(self) -> str:
        """What is in the pack, as text for a terminal."""
        content = self.content
        lines = [
            f"{self.folder}",
            f"  pack {self.uuid}, format {content['version']}, {self.sampling_rate} Hz int16 mono",
        ]
        for name, split in content["splits"].items():
            lines.append(
                f"  {name:<12} {split['num_clips']:>9} clips  {split['duration_s'] / 3600:>8.2f} h  "
                f"{split['num_no_term_clips']:>8} without a term"
            )
        num_bytes = sum(shard["bytes"] for shard in content["shards"])
        lines.append(
            f"  {len(content['shards'])} shards, {num_bytes / 1e6:.1f} MB; columns: {', '.join(self._columns())}"
        )
        if content["num_clipped_samples"]:
            lines.append(f"  {content['num_clipped_samples']} samples were out of range and clipped")
        for problem in content["problems"]:
            lines.append(f"  {problem['action']}: {problem['where']}: {problem['problem']}")
        lines += ["  first clips:", *(f"    {line}" for line in self._first_clips(5))]
        return "\n".join(lines)

    def _columns(self) -> list[str]:
        return parquet.read_schema(self.table(self.splits[0])).names

    def _first_clips(self, count: int) -> Iterator[str]:
        with parquet.ParquetFile(self.table(self.splits[0])) as file:
            batch = next(file.iter_batches(batch_size=count, columns=["key", "duration", "text", "terms"]))
        for row in batch.to_pylist():
            yield f"{row['key']}  {row['duration']:.2f} s  {row['text']!r}  terms: {row['terms']}"


def is_pack(folder: Path) -> bool:
    return (folder / PACK_JSON).is_file()
