"""Pack format v1: the shard file and its index.

A shard is a 4 KiB header and then little-endian int16 PCM, each clip starting at a multiple of 64 bytes, zeros
between. Its uid is the low 63 bits of the xxh64 of everything after the header, so the uid follows from the samples
alone and two copies of a pack are interchangeable. The header carries its own CRC; the index lies beside the shard as
an `.npz` without pickles. Offsets and lengths are in samples, offsets from the start of the *file*.
"""

from __future__ import annotations

import struct
import uuid
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from qwen_term_retrieval.errors import PackError

FORMAT_VERSION = 1
HEADER_BYTES = 4096
CLIP_ALIGNMENT = 64
SAMPLE_BYTES = 2
DTYPE = "<i2"
INDEX_SUFFIX = ".index.npz"
_MAGIC = b"QTRSHARD"
_FIELDS = struct.Struct("<8sII8s16sQqq")


def shard_name(number: int) -> str:
    return f"shard_{number:05d}.dat"


def index_name(number: int) -> str:
    return f"shard_{number:05d}{INDEX_SUFFIX}"


def index_of(shard: Path) -> Path:
    """The index beside a shard."""
    return shard.with_suffix(INDEX_SUFFIX)


@dataclass(frozen=True)
class ShardHeader:
    """The first 4 KiB of a shard: rate in Hz, the pack it was made for; xxh64, bytes and number of clips of its PCM."""

    sampling_rate: int
    pack_uuid: uuid.UUID
    xxh64: int
    num_bytes: int
    num_clips: int

    @property
    def uid(self) -> int:
        """63 bits, so that it fits Arrow's int64."""
        return self.xxh64 & 0x7FFF_FFFF_FFFF_FFFF

    def to_bytes(self) -> bytes:
        fields = _FIELDS.pack(
            _MAGIC,
            FORMAT_VERSION,
            self.sampling_rate,
            DTYPE.encode(),
            self.pack_uuid.bytes,
            self.xxh64,
            self.num_bytes,
            self.num_clips,
        )
        body = fields.ljust(HEADER_BYTES - 4, b"\0")
        return body + struct.pack("<I", zlib.crc32(body))

    @classmethod
    def read(cls, path: Path) -> ShardHeader:
        """Read and check the header of a shard, and that the file is as long as it says.

        Raises:
            PackError: not a shard, another version, damaged, or cut short; FileNotFoundError: missing.
        """
        with path.open("rb") as file:
            raw, size = file.read(HEADER_BYTES), file.seek(0, 2)
        if len(raw) < HEADER_BYTES or raw[:8] != _MAGIC:
            raise PackError(f"{path}: not a shard of this library (no {_MAGIC.decode()} at its start)")
        if zlib.crc32(raw[:-4]) != struct.unpack("<I", raw[-4:])[0]:
            raise PackError(f"{path}: its header is damaged. Copy the pack again, or pack the corpus again.")
        _, version, rate, dtype, pack, xxh64, num_bytes, num_clips = _FIELDS.unpack_from(raw)
        if version != FORMAT_VERSION or dtype.rstrip(b"\0").decode() != DTYPE:
            raise PackError(
                f"{path}: pack format {version} ({dtype!r}); this library reads {FORMAT_VERSION}. Upgrade it."
            )
        if size != HEADER_BYTES + num_bytes:
            raise PackError(f"{path}: {size} bytes where {HEADER_BYTES + num_bytes} belong. Was a copy cut short?")
        return cls(rate, uuid.UUID(bytes=pack), xxh64, num_bytes, num_clips)


def aligned(num_bytes):
    """`num_bytes` (an int, or an array of them) rounded up to where the next clip may start."""
    return -(-num_bytes // CLIP_ALIGNMENT) * CLIP_ALIGNMENT


@dataclass(frozen=True)
class ShardIndex:
    """Where each clip of a shard lies.

    `offset` and `length`: int64 `(num_clips,)`, in samples, `offset` from the start of the file; `crc32`: uint32
    `(num_clips,)` of each clip's PCM bytes; `key`: UTF-8 bytes of fixed width `(num_clips,)`.
    """

    key: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    crc32: np.ndarray

    @classmethod
    def of_clips(cls, keys: Sequence[str], lengths: ArrayLike, crc32: ArrayLike) -> ShardIndex:
        """Lay clips out in order, each aligned."""
        num_bytes = aligned(np.asarray(lengths, np.int64) * SAMPLE_BYTES)
        starts = HEADER_BYTES + np.concatenate(([0], np.cumsum(num_bytes)[:-1]))
        return cls(
            np.array([key.encode() for key in keys]),
            starts // SAMPLE_BYTES,
            np.asarray(lengths, np.int64),
            np.asarray(crc32, np.uint32),
        )

    @classmethod
    def load(cls, path: Path) -> ShardIndex:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["key"], arrays["offset"], arrays["length"], arrays["crc32"])
        except FileNotFoundError as error:
            raise PackError(f"{path} is missing. Copy the pack again, or pack the corpus again.") from error
        except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise PackError(f"{path}: damaged index ({error}). Copy the pack again or pack anew.") from error

    def save(self, file: BinaryIO) -> None:
        np.savez(file, key=self.key, offset=self.offset, length=self.length, crc32=self.crc32)

    @property
    def keys(self) -> list[str]:
        return [key.decode() for key in self.key.tolist()]

    def same_as(self, other: ShardIndex) -> bool:
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.length)
