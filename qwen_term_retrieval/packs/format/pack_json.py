"""`pack.json`: the contents of a pack and the checksum of each of its files.

A pack is a list of increments, one for each time that something was packed, appended or merged in: its tables, its key
index and its shards, none of which is ever written again. The file ends with the xxh64 of its own bytes, taken with the
sixteen digits of that checksum set to zero. `README.md` is not vouched for, so that people may edit it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.format.shards import DTYPE, FORMAT_VERSION
from qwen_term_retrieval.storage.atomic import atomic_file

FORMAT_NAME = "qwen_term_retrieval pack"
PACK_JSON = "pack.json"
# Names the entries of the file: a pack of a corpus that `load_dataset` cached under another layout is made anew.
PACK_LAYOUT = "v1 with increments"
_NO_CHECKSUM = "0" * 16


def write_pack_json(
    folder: Path, sampling_rate: int, increments: Sequence[Mapping[str, Any]], files: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write `pack.json`, with its checksum as the last entry.

    `files` maps each index, table and key index to its `bytes` and `xxh64`; shards carry theirs in their increment.
    """
    whole = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "uuid": pack_uuid(increments),
        "sampling_rate": sampling_rate,
        "dtype": DTYPE,
        "increments": increments,
        "files": files,
        "checksum": _NO_CHECKSUM,
    }
    # File names that are no UTF-8 hold lone surrogates; written with a backslash they are JSON.
    text = json.dumps(whole, indent=1, ensure_ascii=False).encode(errors="backslashreplace").decode()
    checksum = xxhash.xxh64_hexdigest(text.encode())
    with atomic_file(folder / PACK_JSON) as file:
        file.write(_replace_last(text, _NO_CHECKSUM, checksum).encode())


def read_pack_json(folder: Path) -> dict[str, Any]:
    """Read and check `pack.json`.

    Raises:
        PackError: not a pack, damaged, or of another version.
    """
    path = folder / PACK_JSON
    if not path.is_file():
        out = "PACK" if folder.exists() else folder
        raise PackError(f"{folder} is not a pack: it has no pack.json. Make one with `qtr pack SOURCE {out}`.")
    damaged = PackError(f"{path} is damaged: its checksum does not match. Copy the pack again, or pack anew.")
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)
        checksum = content["checksum"]
        digest = xxhash.xxh64_hexdigest(_replace_last(text, checksum, _NO_CHECKSUM).encode())
    except (ValueError, KeyError, TypeError) as error:
        raise damaged from error
    if digest != checksum:
        raise damaged
    if content["version"] != FORMAT_VERSION or "increments" not in content:
        raise PackError(
            f"{path}: pack format {content['version']} as another release of this library wrote it, where format "
            f"{FORMAT_VERSION} with increments is read here. Pack the corpus again."
        )
    return content


def pack_uuid(increments: Sequence[Mapping[str, Any]]) -> str:
    """The uuid of a pack: that of its one increment, or a digest of theirs."""
    uuids = [uuid.UUID(increment["uuid"]) for increment in increments]
    if len(uuids) == 1:
        return str(uuids[0])
    return str(uuid.UUID(bytes=xxhash.xxh3_128_digest(b"".join(each.bytes for each in uuids))))


def shards_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`{"file", "uid", "bytes", "xxh64", "clips"}` of every shard that a `pack.json` names."""
    return [shard for increment in content["increments"] for shard in increment["shards"]]


def _replace_last(text: str, old: str, new: str) -> str:
    head, _, tail = text.rpartition(old)
    return head + new + tail
