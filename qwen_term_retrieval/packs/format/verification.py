"""Reading with proof: samples are given out only if the CRC of the packed clip they belong to is right.

The CRCs stand in the shard's index; the index is checked against `pack.json`, which carries its own checksum. Clips are
copied before they are checked: what was proven is what is returned, even if the disk gives other bytes a moment later.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.format.open_shards import shard_path, shard_samples
from qwen_term_retrieval.packs.format.pack_json import read_pack_json, shards_of
from qwen_term_retrieval.packs.format.shards import ShardIndex, index_of
from qwen_term_retrieval.storage.checksums import file_xxh64

_INDEXES_IN_MEMORY = 256


def verified_samples(uid: int, offset: int, length: int) -> np.ndarray:
    """int16 (length,) of a shard from sample `offset` of its file on: read-only, as they were packed.

    Raises:
        MissingShardError: the shard is nowhere to be found.
        PackError: the samples differ from what was packed, or lie in no single clip; index or `pack.json` are damaged.
    """
    path = shard_path(uid)
    index = _checked_index(uid, path)
    clip = int(np.searchsorted(index.offset, offset, side="right")) - 1
    if clip < 0 or offset + length > index.offset[clip] + index.length[clip]:
        raise PackError(f"{path}: no clip holds samples {offset} to {offset + length}; dataset and pack do not match")
    start = int(index.offset[clip])
    pcm = shard_samples(uid)[start : start + int(index.length[clip])].copy()
    if zlib.crc32(pcm.data) != index.crc32[clip]:
        key = ShardIndex.load(index_of(path)).keys[clip]
        raise PackError(
            f"{path}: clip {key!r} is damaged: its samples are not those that were packed. Copy the pack again, or "
            f"pack anew; `qtr verify {path.parent}` lists all damage."
        )
    pcm.flags.writeable = False
    return pcm[offset - start : offset - start + length]


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Compare files of a pack with the checksums that `pack.json` has of them.

    Raises:
        PackError: naming the file that is missing or altered.
    """
    expected = read_pack_json(folder)["files"]
    for name in names:
        path = folder / name
        if not path.is_file():
            raise PackError(f"{path}: missing. Copy the pack again, or pack anew.")
        if name not in expected or file_xxh64(path) != expected[name]["xxh64"]:
            raise PackError(f"{path}: damaged; it is not the file that pack.json names. Copy the pack, or pack anew.")


@lru_cache(_INDEXES_IN_MEMORY)
def _checked_index(uid: int, shard: Path) -> ShardIndex:
    if uid not in (named["uid"] for named in shards_of(read_pack_json(shard.parent))):
        raise PackError(f"{shard}: not a shard that the pack.json beside it names. Copy the pack again, or pack anew.")
    check_files(shard.parent, [index_of(shard).name])
    # Without the keys, most of the file, which are needed for messages only.
    with np.load(index_of(shard), allow_pickle=False) as arrays:
        return ShardIndex(np.zeros(0), arrays["offset"], arrays["length"], arrays["crc32"])
