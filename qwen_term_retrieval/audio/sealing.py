"""Finished parts into shards: which clip lies where follows from the clips' order and lengths alone."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from qwen_term_retrieval.audio.atomic import atomic_file
from qwen_term_retrieval.audio.parts import pcm_path, read_part
from qwen_term_retrieval.audio.shards import HEADER_BYTES, SAMPLE_BYTES, PackError, ShardHeader, ShardIndex, aligned

INDEX_SUFFIX = ".index.npz"
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class _Placed:
    """A clip, and where its samples lie in its part, in bytes."""

    part: int
    start: int
    num_bytes: int
    clip: dict[str, Any]


def shard_name(number: int) -> str:
    return f"shard_{number:05d}.dat"


def index_name(number: int) -> str:
    return f"shard_{number:05d}{INDEX_SUFFIX}"


def clips_of_parts(parts: Path, num_parts: int) -> Iterator[dict[str, Any]]:
    """The rows of all parts, in corpus order."""
    return (clip for number in range(num_parts) for clip in read_part(parts, number)["clips"])


def seal_shards(
    parts: Path, num_parts: int, pack: Path, *, shard_bytes: int, sampling_rate: int, pack_uuid: uuid.UUID
) -> list[ShardHeader]:
    """Write `shard_N.dat` and `shard_N.index.npz` into `pack`, dropping each part's PCM once its shards are sealed.

    Shards that an interrupted run sealed are kept.

    Raises:
        PackError: where a part is gone that a shard not yet sealed needs: corpus or settings changed in between.
    """
    headers = []
    for number, placed in enumerate(_plan(parts, num_parts, shard_bytes)):
        index = ShardIndex.of_clips(
            [item.clip["key"] for item in placed],
            [item.clip["length"] for item in placed],
            [item.clip["crc32"] for item in placed],
        )
        header = _sealed_before(pack, number, index, pack_uuid)
        if header is None:
            header = _write_shard(pack / shard_name(number), placed, parts, sampling_rate, pack_uuid)
            with atomic_file(pack / index_name(number)) as file:
                index.save(file)
        headers.append(header)
        for part in range(placed[0].part, placed[-1].part):
            pcm_path(parts, part).unlink(missing_ok=True)
    return headers


def _plan(parts: Path, num_parts: int, shard_bytes: int) -> Iterator[list[_Placed]]:
    """Clips of each shard: as many as fit, at least one."""
    shard: list[_Placed] = []
    filled = 0
    for part in range(num_parts):
        start = 0
        for clip in read_part(parts, part)["clips"]:
            num_bytes = aligned(clip["length"] * SAMPLE_BYTES)
            if shard and HEADER_BYTES + filled + num_bytes > shard_bytes:
                yield shard
                shard, filled = [], 0
            shard.append(_Placed(part, start, num_bytes, clip))
            start += num_bytes
            filled += num_bytes
    if shard:
        yield shard


def _sealed_before(pack: Path, number: int, index: ShardIndex, pack_uuid: uuid.UUID) -> ShardHeader | None:
    """The header of a shard that an interrupted run finished; its index, written after it, vouches for it."""
    path = pack / shard_name(number)
    if not (pack / index_name(number)).is_file() or not path.is_file():
        return None
    with path.open("rb") as file:
        header = ShardHeader.read(file, str(path))
    same = header.pack_uuid == pack_uuid and ShardIndex.load(pack / index_name(number)).same_as(index)
    return header if same else None


def _write_shard(
    path: Path, placed: list[_Placed], parts: Path, sampling_rate: int, pack_uuid: uuid.UUID
) -> ShardHeader:
    digest = xxhash.xxh64()
    with atomic_file(path) as file:
        file.write(bytes(HEADER_BYTES))
        for part, run in groupby(placed, key=lambda item: item.part):
            items = list(run)
            num_bytes = items[-1].start + items[-1].num_bytes - items[0].start
            _copy(pcm_path(parts, part), items[0].start, num_bytes, file, digest)
        num_bytes = file.tell() - HEADER_BYTES
        header = ShardHeader(sampling_rate, pack_uuid, digest.intdigest(), num_bytes, len(placed))
        file.seek(0)
        file.write(header.to_bytes())
    return header


def _copy(source: Path, start: int, num_bytes: int, target: BinaryIO, digest: xxhash.xxh64) -> None:
    if not source.is_file():
        raise PackError(
            f"{source}: needed, but used up by an interrupted run with another corpus or other settings. "
            f"Delete {source.parent.parent} and pack again."
        )
    with source.open("rb") as file:
        file.seek(start)
        while num_bytes:
            block = file.read(min(num_bytes, _COPY_BYTES))
            if not block:
                raise PackError(f"{source}: ends early. Delete {source.parent.parent} and pack again.")
            target.write(block)
            digest.update(block)
            num_bytes -= len(block)
