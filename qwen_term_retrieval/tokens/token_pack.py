"""Token pack format v1: the files of a folder of tokens, and whether they are whole.

    tokens.json        what is inside, the checksum of every other file, and at its end its own
    tokens_00000.bin   4 KiB header, then little-endian uint16 or uint32 token ids
    documents.npy      int64 (num_documents * num_columns + 1,): where each text starts, and where the last one ends
    tokenizer.json     the tokenizer that made the ids; `tokenizers.Tokenizer.from_file` reads it

The shards laid end to end are one stream of tokens, document after document. All shards but the last hold the same
number of tokens, so a position finds its shard by one division, and a document may run on from shard to shard. Beyond
its header a shard is what `np.memmap(path, "<u2", "r", offset=4096)` shows.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.storage.checksums import damages_found, file_xxh64

FORMAT_NAME = "qwen_term_retrieval tokens"
FORMAT_VERSION = 1
HEADER_BYTES = 4096
TOKENS_JSON = "tokens.json"
DOCUMENTS = "documents.npy"
TOKENIZER = "tokenizer.json"
DTYPES = ("uint16", "uint32")
_MAGIC = b"QTRTOKEN"
_FIELDS = struct.Struct("<8sI8sQq")


def token_shard_name(number: int) -> str:
    return f"tokens_{number:05d}.bin"


@dataclass(frozen=True)
class TokenShardHeader:
    """The first 4 KiB of a shard: dtype ("uint16", "uint32"), number of tokens, and xxh64 of all that follows."""

    dtype: str
    num_tokens: int
    xxh64: int

    @property
    def num_bytes(self) -> int:
        """Size of the whole file."""
        return HEADER_BYTES + self.num_tokens * np.dtype(self.dtype).itemsize

    def to_bytes(self) -> bytes:
        fields = _FIELDS.pack(_MAGIC, FORMAT_VERSION, self.dtype.encode(), self.xxh64, self.num_tokens)
        body = fields.ljust(HEADER_BYTES - 4, b"\0")
        return body + struct.pack("<I", zlib.crc32(body))

    @staticmethod
    def begins(path: Path) -> bool:
        """Whether a file begins as a shard of tokens does."""
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC

    @classmethod
    def read(cls, path: Path) -> TokenShardHeader:
        """Read and check the header of a shard, and that the file is as long as it says.

        Raises:
            PackError: missing, not a shard of tokens, damaged, of another version, or cut short.
        """
        if not path.is_file():
            raise PackError(f"{path} is missing. Copy the folder again, or pack the text again.")
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
        if len(raw) < HEADER_BYTES or raw[:8] != _MAGIC:
            raise PackError(f"{path}: not a shard of tokens (no {_MAGIC.decode()} at its start)")
        if zlib.crc32(raw[:-4]) != struct.unpack("<I", raw[-4:])[0]:
            raise PackError(f"{path}: its header is damaged. Copy the folder again, or pack the text again.")
        _, version, dtype_bytes, xxh64, num_tokens = _FIELDS.unpack_from(raw)
        dtype = dtype_bytes.rstrip(b"\0").decode()
        if version != FORMAT_VERSION or dtype not in DTYPES:
            raise PackError(
                f"{path}: token format {version}, {dtype}; upgrade this library, which reads {FORMAT_VERSION}"
            )
        header, size = cls(dtype, num_tokens, xxh64), path.stat().st_size
        if size != header.num_bytes:
            raise PackError(f"{path}: {size} bytes where {header.num_bytes} belong. Was a copy cut short?")
        return header


def write_tokens_json(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `tokens.json`; its last entry is the xxh64 of its text without that entry."""
    with atomic_file(folder / TOKENS_JSON) as file:
        file.write(_sealed({"format": FORMAT_NAME, "version": FORMAT_VERSION, **content}))


def read_tokens_json(folder: Path) -> dict[str, Any]:
    """Read and check `tokens.json`.

    Raises:
        PackError: not a folder of tokens, damaged, or of another version.
    """
    path = folder / TOKENS_JSON
    if not path.is_file():
        raise PackError(f"{folder} holds no {TOKENS_JSON}. Make one with `pack_tokens(source, folder, tokenizer)`.")
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
        del content["checksum"]
        whole = raw == _sealed(content)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise PackError(f"{path} is damaged: its checksum does not match. Copy the folder again, or pack anew.")
    if content["format"] != FORMAT_NAME or content["version"] != FORMAT_VERSION:
        raise PackError(f"{path}: {content['format']} {content['version']}; this library reads {FORMAT_VERSION}")
    return content


def _sealed(content: dict[str, Any]) -> bytes:
    checksum = xxhash.xxh64_hexdigest(_json(content))
    return _json({**content, "checksum": checksum})


def _json(content: dict[str, Any]) -> bytes:
    # Written and read by the same rules, so that a file equals what its content gives, byte for byte, or is damaged.
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True)
class TokenPack:
    """A folder of packed tokens. Use `TokenPack.open(folder)`; windows come from `MmapTokens(folder, …)`.

    `content` is what `tokens.json` says.
    """

    folder: Path
    content: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> TokenPack:
        """Open a folder of tokens: reads `tokens.json` and the header of each shard.

        Raises:
            PackError: a file is missing, damaged, cut short, of another pack or of another version.
        """
        pack = cls(Path(folder).absolute(), read_tokens_json(Path(folder)))
        for shard in pack.content["shards"]:
            pack.check_header(shard)
        return pack

    @property
    def shards(self) -> list[Path]:
        return [self.folder / shard["file"] for shard in self.content["shards"]]

    def check_header(self, shard: Mapping[str, Any]) -> None:
        header = TokenShardHeader.read(self.folder / shard["file"])
        if f"{header.xxh64:016x}" != shard["xxh64"] or header.dtype != self.content["dtype"]:
            raise PackError(f"{self.folder / shard['file']}: a shard of another pack. Copy the folder again.")

    def documents(self) -> np.ndarray:
        """Where each text starts in the stream, and where the last one ends: int64, memory-mapped.

        Raises:
            PackError: missing, damaged, or of another size than `tokens.json` says.
        """
        path = self.folder / DOCUMENTS
        try:
            starts = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise PackError(f"{path}: {error}. Copy the folder again, or pack the text again.") from error
        count = self.content["num_documents"] * len(self.content["columns"]) + 1
        if starts.dtype != np.int64 or starts.shape != (count,) or starts[-1] != self.content["num_tokens"]:
            raise PackError(f"{path}: does not belong to this pack, or is damaged. Copy the folder again.")
        return starts.view(np.ndarray)

    def verify(self, *, quiet: bool = True) -> list[str]:
        """Read every byte and compare with the checksums; one line per damage found. Empty: not a bit differs."""
        try:
            read_tokens_json(self.folder)
        except PackError as error:
            return [str(error)]
        files, shards = self.content["files"], self.content["shards"]
        return damages_found(self.folder, files, shards, self._shard_damage, quiet=quiet)

    def _shard_damage(self, shard: Mapping[str, Any]) -> Iterator[str]:
        try:
            self.check_header(shard)
        except PackError as error:
            yield str(error)
            return
        if file_xxh64(self.folder / shard["file"], skip=HEADER_BYTES) != shard["xxh64"]:
            yield f"{self.folder / shard['file']}: damaged"

    def inspect(self) -> str:
        """What is in the pack, as text for a terminal."""
        content = self.content
        num_bytes = sum(shard["bytes"] for shard in content["shards"])
        tokenizer = content["tokenizer"]
        return "\n".join(
            [
                f"{self.folder}",
                f"  {content['num_tokens']} tokens, {content['num_documents']} documents of {content['columns']}, "
                f"{content['num_empty']} empty ones left out",
                f"  {len(content['shards'])} shards of {content['dtype']}, {num_bytes / 1e6:.1f} MB",
                f"  tokenizer {tokenizer['name']} ({tokenizer['vocabulary_size']} ids, sha256 "
                f"{tokenizer['sha256'][:8]}…); between columns {tokenizer['separator']}, at the end {tokenizer['eos']}",
            ]
        )
