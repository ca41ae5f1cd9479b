"""Finished parts into shards: which clip lies where follows from the clips' order and lengths alone.

Parts are laid down while later ones are still being decoded. A shard is finished when the next clip no longer fits:
then it is brought to the disk, its index is written, which vouches for it when a run goes on after an interruption, and
the PCM of its parts goes, so that the disk holds the audio about once. Only at the end is it known what pack this is,
and its uuid is stamped into every header.
"""

from __future__ import annotations

import os
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa
import xxhash

from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.format.shards import (
    HEADER_BYTES,
    SAMPLE_BYTES,
    ShardHeader,
    ShardIndex,
    aligned,
    index_name,
    shard_name,
)
from qwen_term_retrieval.packs.writing.parts import Part, pcm_path
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.storage.checksums import file_xxh64
from qwen_term_retrieval.storage.staging import copy_part

_FLUSH_BYTES = 64 << 20
_NO_PACK = uuid.UUID(int=0)


@dataclass
class _OpenShard:
    """The shard being filled. `runs` says which bytes `(part, start, num_bytes)` of parts it holds.

    `file` is None where an interrupted run left an index of this number: the shard it vouches for may be this one.
    """

    number: int
    file: BinaryIO | None
    digest: xxhash.xxh64 = field(default_factory=xxhash.xxh64)
    num_bytes: int = 0
    runs: list[tuple[int, int, int]] = field(default_factory=list)
    keys: list[pa.Array] = field(default_factory=list)
    lengths: list[np.ndarray] = field(default_factory=list)
    crc32: list[np.ndarray] = field(default_factory=list)

    def index(self) -> ShardIndex:
        keys = pa.chunked_array(self.keys).to_pylist()
        return ShardIndex.of_clips(keys, np.concatenate(self.lengths), np.concatenate(self.crc32))


class ShardSealer:
    """Lays parts into `shard_N.dat` and `shard_N.index.npz`; used as a context.

    Memory holds the index of one shard.
    """

    def __init__(self, parts: Path, pack: Path, *, shard_bytes: int, sampling_rate: int, first_number: int = 0) -> None:
        self._parts = parts
        self._pack = pack
        self._shard_bytes = shard_bytes
        self._sampling_rate = sampling_rate
        self._first_number = first_number
        self._headers: list[ShardHeader] = []
        self._files = ExitStack()
        self._shard: _OpenShard | None = None
        # Waits for the disk, and frees it, while this thread goes on.
        self._disk = ThreadPoolExecutor(1)
        self._flushing: Future[None] | None = None
        self._num_unflushed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._disk.shutdown()
        self._files.__exit__(*error)  # type: ignore[arg-type]

    def add(self, number: int, part: Part) -> None:
        """Lay down the clips of the next part.

        Raises:
            PackError: its PCM is gone: corpus or settings have changed since an interrupted run.
        """
        num_bytes = aligned(part.array("length") * SAMPLE_BYTES)
        ends = np.cumsum(num_bytes)
        first, start = 0, 0
        while first < len(num_bytes):
            shard = self._shard = self._shard or self._open()
            room = self._shard_bytes - HEADER_BYTES - shard.num_bytes
            last = int(np.searchsorted(ends, start + room, side="right"))
            if last <= first and not shard.num_bytes:
                last = first + 1  # a clip that is longer than any shard
            if last <= first:
                self._seal(shard)
                continue
            end = int(ends[last - 1])
            self._lay(shard, (number, start, end - start), part, slice(first, last))
            first, start = last, end

    def close(self) -> list[ShardHeader]:
        """Finish the last shard; headers of all, in order, without the uuid of a pack."""
        if self._shard is not None:
            self._seal(self._shard)
        return self._headers

    def _open(self) -> _OpenShard:
        number = self._first_number + len(self._headers)
        if (self._pack / index_name(number)).is_file():
            return _OpenShard(number, None)
        return _OpenShard(number, self._start_file(number))

    def _start_file(self, number: int) -> BinaryIO:
        file = self._files.enter_context(atomic_file(self._pack / shard_name(number)))
        file.write(bytes(HEADER_BYTES))
        return file

    def _lay(self, shard: _OpenShard, run: tuple[int, int, int], part: Part, clips: slice) -> None:
        if shard.file is not None:
            copy_part(pcm_path(self._parts, run[0]), run[1], run[2], shard.file, shard.digest)
            self._flush_behind(shard.file, run[2])
        shard.runs.append(run)
        shard.keys.append(part.rows.column("key")[clips])
        shard.lengths.append(part.array("length")[clips])
        shard.crc32.append(part.array("crc32")[clips])
        shard.num_bytes += run[2]

    def _seal(self, shard: _OpenShard) -> None:
        index = shard.index()
        header = _sealed_before(self._pack, shard, index, self._sampling_rate) if shard.file is None else None
        if header is None:
            if shard.file is None:
                shard.file = self._start_file(shard.number)
                for part, start, num_bytes in shard.runs:
                    copy_part(pcm_path(self._parts, part), start, num_bytes, shard.file, shard.digest)
            header = ShardHeader(self._sampling_rate, _NO_PACK, shard.digest.intdigest(), shard.num_bytes, len(index))
            shard.file.seek(0)
            shard.file.write(header.to_bytes())
            self._wait_for_flush()
            self._files.close()
            with atomic_file(self._pack / index_name(shard.number)) as file:
                index.save(file)
        self._headers.append(header)
        self._shard = None
        # The rest of the last part may belong to the next shard.
        for part in {run[0] for run in shard.runs} - {shard.runs[-1][0]}:
            self._disk.submit(pcm_path(self._parts, part).unlink, missing_ok=True)

    def _flush_behind(self, file: BinaryIO, num_bytes: int) -> None:
        """Start bringing the shard to the disk every so often, so that little is left to wait for at its end."""
        self._num_unflushed += num_bytes
        if self._num_unflushed >= _FLUSH_BYTES and (self._flushing is None or self._flushing.done()):
            self._wait_for_flush()
            file.flush()
            self._flushing = self._disk.submit(os.fsync, file.fileno())
            self._num_unflushed = 0

    def _wait_for_flush(self) -> None:
        if self._flushing is not None:
            self._flushing.result()
            self._flushing = None


def _sealed_before(pack: Path, shard: _OpenShard, index: ShardIndex, sampling_rate: int) -> ShardHeader | None:
    """The header of a shard that an interrupted run finished; its index, written after it, vouches for it."""
    path = pack / shard_name(shard.number)
    try:
        same = ShardIndex.load(pack / index_name(shard.number)).same_as(index)
    except PackError:
        return None
    if not same or not path.is_file() or path.stat().st_size != HEADER_BYTES + shard.num_bytes:
        return None
    try:
        header = ShardHeader.read(path)
        return header if header.sampling_rate == sampling_rate else None
    except PackError:
        # A power cut while the uuid was stamped; the PCM behind it is whole.
        xxh64 = int(file_xxh64(path, skip=HEADER_BYTES), 16)
        return ShardHeader(sampling_rate, _NO_PACK, xxh64, shard.num_bytes, len(index))


def stamp_uuid(
    pack: Path, headers: list[ShardHeader], pack_uuid: uuid.UUID, first_number: int = 0
) -> list[ShardHeader]:
    """Write into the header of each shard which pack it was made for."""
    stamped = [replace(header, pack_uuid=pack_uuid) for header in headers]
    for number, (before, header) in enumerate(zip(headers, stamped, strict=True), first_number):
        if before != header:
            with (pack / shard_name(number)).open("r+b") as file:
                file.write(header.to_bytes())
                file.flush()
                os.fsync(file.fileno())
    return stamped
