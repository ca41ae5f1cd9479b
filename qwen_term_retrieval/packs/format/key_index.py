"""`keys-NNNNN.arrow`: where each clip of an increment is, found by its key without a Python object per key.

One Arrow IPC file with one record batch, sorted by the hash of the key and memory-mapped: a lookup is a binary search
over the hashes, then a comparison of the key itself. Opening costs nothing, and the pages are shared by all processes.
`row` counts within the increment's own table of the split, so that the file stays as it is when packs are merged.
Writing one sorts its columns in memory: some 100 bytes a clip, once, when an increment is finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from pyarrow import compute, ipc

from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.storage.atomic import atomic_file

KEY_SCHEMA = pa.schema(
    {
        "hash": pa.uint64(),
        # 64-bit offsets: the keys of a large pack exceed the 2 GiB of a plain string column.
        "key": pa.large_string(),
        "split": pa.dictionary(pa.int16(), pa.string()),
        "row": pa.int64(),
        "shard": pa.int64(),
        "offset": pa.int64(),
        "length": pa.int64(),
    }
)
_KEYS_PER_BATCH = 8192
_MOST_KEYS_NAMED = 10


@dataclass(frozen=True)
class KeyPlace:
    """Where the clip of a key is: its row within the increment's table of `split`; shard uid, samples in the shard."""

    key: str
    split: str
    row: int
    shard: int
    offset: int
    length: int


def keys_name(increment: int) -> str:
    return f"keys-{increment:05d}.arrow"


def named_keys(keys: Sequence[str]) -> str:
    """The first of some keys, quoted, for messages."""
    return ", ".join(map(repr, keys[:_MOST_KEYS_NAMED])) + (" …" if len(keys) > _MOST_KEYS_NAMED else "")


def key_hashes(keys: Sequence[str]) -> np.ndarray:
    """xxh3_64 of each key: uint64 (num_keys,)."""
    return np.fromiter((xxhash.xxh3_64_intdigest(key.encode()) for key in keys), np.uint64, len(keys))


def write_keys(
    path: Path,
    keys: pa.ChunkedArray,
    *,
    splits: Sequence[str],
    split: np.ndarray,
    row: np.ndarray,
    shard: np.ndarray,
    offset: np.ndarray,
    length: np.ndarray,
) -> None:
    """Write the key index of an increment.

    Args:
        keys: of all its clips, in any order; the arrays are (num_keys,) in the same order.
        splits: names that `split` points into.
        row: within the increment's table of the split.
        shard: uid; `offset` and `length` are in samples.
    """
    keys = keys.cast(pa.large_string())
    hashes = np.concatenate([np.zeros(0, np.uint64), *(key_hashes(chunk.to_pylist()) for chunk in keys.chunks)])
    order = np.argsort(hashes, kind="stable")
    batch = pa.record_batch(
        [
            pa.array(hashes[order]),
            keys.combine_chunks().take(pa.array(order)),
            pa.DictionaryArray.from_arrays(pa.array(split[order], pa.int16()), pa.array(splits, pa.string())),
            *(pa.array(values[order], pa.int64()) for values in (row, shard, offset, length)),
        ],
        schema=KEY_SCHEMA,
    )
    with atomic_file(path) as file, ipc.new_file(file, KEY_SCHEMA) as writer:
        writer.write_batch(batch)


class KeyTable:
    """An open key index. `hashes` is a zero-copy view of its sorted hashes: uint64 (num_keys,)."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            PackError: it is missing, or is no key index.
        """
        self._path = path
        try:
            self._batch = ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except FileNotFoundError as error:
            raise PackError(f"{path} is missing. Copy the pack again, or pack the corpus again.") from error
        except (OSError, pa.ArrowException, IndexError) as error:
            raise PackError(f"{path}: damaged key index ({error}). Copy the pack again or pack anew.") from error
        if not self._batch.schema.equals(KEY_SCHEMA):
            raise PackError(f"{path}: no key index of this library. Copy the pack again or pack anew.")
        self.hashes = self._batch.column("hash").to_numpy(zero_copy_only=True)

    def __len__(self) -> int:
        return len(self.hashes)

    def find(self, key: str) -> KeyPlace | None:
        """The place of a key, or None."""
        (wanted,) = key_hashes([key])
        position = int(np.searchsorted(self.hashes, wanted))
        while position < len(self.hashes) and self.hashes[position] == wanted:
            if self._keys(slice(position, position + 1)) == [key]:
                place = self._batch.slice(position, 1).to_pylist()[0]
                del place["hash"]
                return KeyPlace(**place)
            position += 1
        return None

    def known(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` that are in the index, in the order given."""
        hashes = key_hashes(keys)
        positions = np.searchsorted(self.hashes, hashes)
        inside = positions < len(self.hashes)
        likely = np.zeros(len(keys), bool)
        likely[inside] = self.hashes[positions[inside]] == hashes[inside]
        return [keys[i] for i in np.flatnonzero(likely).tolist() if self.find(keys[i])]

    def shared_with(self, other: KeyTable) -> list[str]:
        """Keys that both hold."""
        hashes = np.intersect1d(self.hashes, other.hashes)
        mine = self._batch.column("key").take(pa.array(np.flatnonzero(np.isin(self.hashes, hashes))))
        return other.known(mine.to_pylist())

    def keys(self) -> Iterator[str]:
        """All keys, in the order of their hashes."""
        for start in range(0, len(self), _KEYS_PER_BATCH):
            yield from self._keys(slice(start, start + _KEYS_PER_BATCH))

    def _keys(self, rows: slice) -> list[str]:
        try:
            return self._batch.column("key")[rows].to_pylist()
        except UnicodeDecodeError as error:
            raise PackError(f"{self._path}: damaged key index ({error}). Copy the pack again or pack anew.") from error

    def starting_with(self, prefix: str, limit: int) -> list[str]:
        """Up to `limit` keys that start with `prefix`; reads all keys."""
        keys = self._batch.column("key")
        return keys.filter(compute.starts_with(keys, prefix)).slice(0, limit).to_pylist()
