"""Shards of the system before this one, and packs, as one keyed collection of recordings.

The files are described in `corpora/readers/legacy_shards.py`. To make a pack of them:
`pack_corpus(legacy_utterances(folder), "pack")`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qwen_term_retrieval.corpora.readers.legacy_shards import LegacyShard, open_shards
from qwen_term_retrieval.packs.feature import Clip
from qwen_term_retrieval.packs.format.key_index import key_hashes
from qwen_term_retrieval.packs.format.shards import ShardIndex, index_of
from qwen_term_retrieval.packs.pack import Pack, is_pack

_FULL_SCALE = np.float32(1 / 32768)


class MMapAudioCollection:
    """The recordings of a folder of legacy shards, or of a pack, by key.

    >>> collection = MMapAudioCollection("mmap_shards", allow_pickle=True)
    >>> wav, sr, key, relpath = collection.get_by_key("POD/POD0000000002/X")
    >>> shard, position = collection.k2loc["POD/POD0000000002/X"]

    Args:
        folder: with `shard_N.dat` and `shard_N.index.npz`, or a pack.
        allow_pickle: read indexes that hold pickled objects. Only where you trust their maker: unpickling runs code.

    Raises:
        FileNotFoundError: no shards there.
        PackError: an index that is damaged, missing or pickled, or that reaches past the end of its shard.
    """

    def __init__(self, folder: str | Path, allow_pickle: bool = False) -> None:
        self.folder = Path(folder).absolute()
        self.allow_pickle = allow_pickle
        self._locations = (
            PackLocations(Pack.open(self.folder))
            if is_pack(self.folder)
            else ShardLocations(self.folder, open_shards(self.folder, allow_pickle))
        )

    def __len__(self) -> int:
        return self._locations.num_recordings

    @property
    def k2loc(self) -> KeyLocations:
        """Key → (number of the shard, position in it)."""
        return self._locations

    def get_by_key(self, key: str) -> tuple[np.ndarray, int, str, str]:
        """`(wav, sr, key, relpath)`: wav is float32 (num_samples,) in [-1, 1), sr in Hz.

        Raises:
            KeyError: no recording has this key.
        """
        pcm, sr, relpath = self._locations.recording(key)
        return np.multiply(pcm, _FULL_SCALE, dtype=np.float32), sr, key, relpath

    def __reduce__(self) -> tuple[Any, ...]:
        return MMapAudioCollection, (self.folder, self.allow_pickle)

    def __repr__(self) -> str:
        return f"MMapAudioCollection({str(self.folder)!r}, {len(self)} recordings)"


class KeyLocations(Mapping[str, tuple[int, int]]):
    """Key → (number of the shard, position in it), without a Python object a key; iterates in the order of the shards.

    `num_recordings` counts those of one key apart, `len()` does not.
    """

    num_recordings: int

    @abstractmethod
    def recording(self, key: str) -> tuple[np.ndarray, int, str]:
        """int16 (num_samples,), a read-only view of the memory map; its rate in Hz; its relpath."""


class ShardLocations(KeyLocations):
    """Keys of legacy shards, in two sorted arrays, 16 bytes a key; of one key twice, the later recording counts."""

    def __init__(self, folder: Path, shards: list[LegacyShard]) -> None:
        self._folder = folder
        self._shards = shards
        self._first_row = np.cumsum([0, *(len(shard) for shard in shards)])
        self.num_recordings = int(self._first_row[-1])
        hashes = np.concatenate([key_hashes(shard.key.to_pylist()) for shard in shards])
        self._row = np.argsort(hashes, kind="stable")
        self._hash = hashes[self._row]

    def __getitem__(self, key: str) -> tuple[int, int]:
        (wanted,) = key_hashes([key])
        first, last = np.searchsorted(self._hash, wanted, "left"), np.searchsorted(self._hash, wanted, "right")
        for row in self._row[first:last][::-1]:
            found, number, position = self._at(int(row))
            if found == key:
                return number, position
        raise _no_recording(self._folder, key, self._at(0)[0] if self.num_recordings else None)

    def __iter__(self) -> Iterator[str]:
        for row in range(self.num_recordings):
            key, number, position = self._at(row)
            if self[key] == (number, position):
                yield key

    def __len__(self) -> int:
        # Equal hashes are equal keys but for one in 10^7 collections of a million; those are looked at one by one.
        same = np.flatnonzero(self._hash[1:] == self._hash[:-1])
        keys = [[self._at(int(row))[0] for row in self._row[i : i + 2]] for i in same]
        return self.num_recordings - sum(first == second for first, second in keys)

    def recording(self, key: str) -> tuple[np.ndarray, int, str]:
        number, position = self[key]
        shard = self._shards[number]
        return shard.pcm(position), int(shard.rate[position]), shard.relpath[position].as_py()

    def _at(self, row: int) -> tuple[str, int, int]:
        """Key, shard number and position of the recording that stands at `row`, all shards counted through."""
        number = int(np.searchsorted(self._first_row, row, side="right")) - 1
        position = row - int(self._first_row[number])
        return self._shards[number].key[position].as_py(), number, position


class PackLocations(KeyLocations):
    """Keys of a pack, in its mapped key index; of the shards' own indexes, those that are asked for are read."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack
        self._indexes = [index_of(pack.folder / shard["file"]) for shard in pack.shards]
        # Two shards of one uid hold the same samples at the same places.
        self._number = {shard["uid"]: number for number, shard in enumerate(pack.shards)}
        self._offsets: dict[int, np.ndarray] = {}
        self.num_recordings = pack.num_clips

    def __getitem__(self, key: str) -> tuple[int, int]:
        clip = self._clip(key)
        number = self._number[clip.shard]
        if number not in self._offsets:
            self._offsets[number] = ShardIndex.load(self._indexes[number]).offset
        return number, int(np.searchsorted(self._offsets[number], clip.offset))

    def __iter__(self) -> Iterator[str]:
        for path in self._indexes:
            yield from ShardIndex.load(path).keys

    def __len__(self) -> int:
        return self.num_recordings

    def recording(self, key: str) -> tuple[np.ndarray, int, str]:
        clip = self._clip(key)
        return clip.pcm, clip.sampling_rate, key

    def _clip(self, key: str) -> Clip:
        found = self._pack.get(key)
        if found is None:
            raise _no_recording(self._pack.folder, key, next(self._pack.keys(), None))
        return found.clip


def _no_recording(folder: Path, key: str, example: str | None) -> KeyError:
    there = f"; a key there is {example!r}" if example is not None else ""
    return KeyError(f"{folder} holds no recording {key!r}{there}")
