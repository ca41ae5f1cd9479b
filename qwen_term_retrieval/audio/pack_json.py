"""`pack.json`: the contents of a pack and the checksum of each of its files.

It ends with the xxh64 of its own bytes, taken with the sixteen digits of that checksum set to zero. `README.md` is not
vouched for, so that people may edit it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from qwen_term_retrieval.audio.atomic import atomic_file
from qwen_term_retrieval.audio.shards import FORMAT_VERSION, PackError

FORMAT_NAME = "qwen_term_retrieval pack"
PACK_JSON = "pack.json"
_NO_CHECKSUM = "0" * 16


def write_pack_json(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `pack.json`, with its checksum as the last entry."""
    whole = {"format": FORMAT_NAME, "version": FORMAT_VERSION, **content, "checksum": _NO_CHECKSUM}
    text = json.dumps(whole, indent=1, ensure_ascii=False)
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
        raise PackError(f"{folder} is not a pack: it has no pack.json. Make one with `qtr pack SOURCE {folder}`.")
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
    if content["version"] != FORMAT_VERSION:
        raise PackError(f"{path}: pack format {content['version']}; this library reads {FORMAT_VERSION}")
    return content


def file_xxh64(path: Path, *, skip: int = 0) -> str:
    """Hex xxh64 of a file from byte `skip` on."""
    digest = xxhash.xxh64()
    with path.open("rb") as file:
        file.seek(skip)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _replace_last(text: str, old: str, new: str) -> str:
    head, _, tail = text.rpartition(old)
    return head + new + tail
