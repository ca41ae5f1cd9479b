"""Shards of the system before this one, and packs, as one keyed collection of recordings.

A legacy shard is `shard_00000.dat`, raw int16 mono without a header, and `shard_00000.index.npz` with arrays `key`,
`relpath`, `offset`, `length` (int64, in samples) and `sr`. The old writer saved keys and paths as pickled objects, and
unpickling runs whatever code the file holds: such an index opens only with `allow_pickle=True`.

To make a pack of them: `pack_corpus(legacy_utterances(folder), "pack")`.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qwen_term_retrieval.audio.feature import Clip
from qwen_term_retrieval.audio.pack import Pack, is_pack
from qwen_term_retrieval.audio.pack_format.keys import key_hashes
from qwen_term_retrieval.audio.pack_format.shards import DTYPE, SAMPLE_BYTES, PackError, ShardIndex, index_of
from qwen_term_retrieval.audio.utterance import CorpusError, Utterance, split_of_path

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
            else ShardLocations(self.folder, _open_shards(self.folder, allow_pickle))
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
    """Of legacy shards: two sorted arrays, 16 bytes a key. Where a key is there twice, the later recording counts."""

    def __init__(self, folder: Path, shards: list[_Shard]) -> None:
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
    """Of a pack: found in its mapped key index; of the shards' own indexes, those that are asked for are read."""

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


def legacy_utterances(folder: str | Path, allow_pickle: bool = False) -> Iterator[Utterance]:
    """The recordings of legacy shards, in order, with an extra column `relpath`; they have no text and no terms.

    Raises:
        FileNotFoundError, PackError: as `MMapAudioCollection`.
        CorpusError: the folder is a pack.
    """
    folder = Path(folder).absolute()
    if is_pack(folder):
        raise CorpusError(f"{folder} is a pack already; open it with load_dataset({str(folder)!r})")
    for shard in _open_shards(folder, allow_pickle):
        for position in range(len(shard)):
            relpath = shard.relpath[position].as_py()
            yield Utterance(
                shard.key[position].as_py(),
                shard.pcm(position),
                split=split_of_path(Path(relpath).parent / "_") or "train",
                sampling_rate=int(shard.rate[position]),
                extra={"relpath": relpath},
                source=f"{shard.path}, clip {position}",
            )


def is_legacy(folder: Path) -> bool:
    """Whether a folder holds legacy shards: some `.dat` with an index beside it, and no `pack.json`."""
    return not is_pack(folder) and any(index_of(path).is_file() for path in folder.glob("shard_*.dat"))


@dataclass(frozen=True)
class _Shard:
    """One shard: `samples` int16, all of its file; of each clip key and relpath, and in samples offset and length."""

    path: Path
    samples: np.ndarray
    key: pa.Array
    relpath: pa.Array
    offset: np.ndarray
    length: np.ndarray
    rate: np.ndarray

    def __len__(self) -> int:
        return len(self.offset)

    def pcm(self, position: int) -> np.ndarray:
        """int16 (num_samples,): a read-only view of the memory map."""
        start = int(self.offset[position])
        return self.samples[start : start + int(self.length[position])]


def _open_shards(folder: Path, allow_pickle: bool) -> list[_Shard]:
    return [_open_shard(path, allow_pickle) for path in _shard_files(folder)]


def _shard_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the one that holds shard_00000.dat")
    names = [re.fullmatch(r"shard_(\d+)\.(dat|index\.npz)", path.name) for path in folder.iterdir()]
    numbers = sorted({int(name[1]) for name in names if name})
    if not numbers:
        raise FileNotFoundError(f"{folder} holds no shard_00000.dat; give the folder of the shards")
    files = [folder / f"shard_{number:05d}.dat" for number in range(numbers[-1] + 1)]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise PackError(f"{missing} is missing, of {len(files)} shards. Copy them all.")
    return files


def _open_shard(path: Path, allow_pickle: bool) -> _Shard:
    index = index_of(path)
    num_bytes = path.stat().st_size
    if num_bytes % SAMPLE_BYTES:
        raise PackError(f"{path}: {num_bytes} bytes are no whole number of int16 samples. Was a copy cut short?")
    arrays = _read_index(index, allow_pickle)
    key = _strings(arrays, "key", index)
    offset, length = (_integers(arrays, name, index, len(key)) for name in ("offset", "length"))
    num_samples = num_bytes // SAMPLE_BYTES
    # In this order no sum can overflow.
    wrong = (offset < 0) | (length < 1) | (length > num_samples) | (offset > num_samples - length)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise PackError(
            f"{index}: clip {key[at].as_py()!r} lies at samples {offset[at]} + {length[at]}, outside of {path.name} "
            f"with its {num_samples} samples. Was the shard cut short, or is the index another's?"
        )
    return _Shard(
        path,
        np.memmap(path, DTYPE, "r") if num_samples else np.zeros(0, DTYPE),
        key,
        _strings(arrays, "relpath", index, len(key)) if "relpath" in arrays else key,
        offset,
        length,
        _rates(arrays, index, len(key)),
    )


def _read_index(path: Path, allow_pickle: bool) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise PackError(f"{path} is missing: without it nobody knows what {path.parent} holds. Copy it again.")
    try:
        with np.load(path, allow_pickle=allow_pickle) as arrays:
            # `dtype`, pickled too, only ever said int16.
            return {name: arrays[name] for name in arrays.files if name in ("key", "relpath", "offset", "length", "sr")}
    except Exception as error:
        # A damaged zip raises a dozen kinds (RuntimeError where a flipped bit says "encrypted"), a pickle any at all.
        if not allow_pickle and "allow_pickle=False" in str(error):
            raise PackError(
                f"{path} holds pickled objects, and reading them runs whatever code they hold. If you trust who made "
                "it: allow_pickle=True. A pack made of it has no pickles."
            ) from error
        raise _damaged(path, error) from error


def _damaged(path: Path, problem: object) -> PackError:
    return PackError(f"{path}: damaged index ({problem}). Copy it again.")


def _strings(arrays: Mapping[str, np.ndarray], name: str, path: Path, length: int | None = None) -> pa.Array:
    """Text of any numpy kind as Arrow: a third of the memory, and quick to take apart."""
    values = arrays.get(name)
    if values is None or values.ndim != 1 or (length is not None and len(values) != length):
        raise _damaged(path, f"no array {name!r} with an entry a clip")
    try:
        texts = values.tolist()
        return pa.array([text.decode() if isinstance(text, bytes) else text for text in texts], pa.large_string())
    except (UnicodeDecodeError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise _damaged(path, f"{name!r} does not hold text: {error}") from error


def _integers(arrays: Mapping[str, np.ndarray], name: str, path: Path, length: int) -> np.ndarray:
    values = arrays.get(name)
    if values is None or values.shape != (length,) or values.dtype.kind not in "iu":
        raise _damaged(path, f"no array {name!r} with an integer a clip")
    return values.astype(np.int64)


def _rates(arrays: Mapping[str, np.ndarray], path: Path, length: int) -> np.ndarray:
    """Hz of each clip; the old writer stored one number a shard."""
    values = arrays.get("sr", np.array(16_000))
    if values.dtype.kind not in "iu" or values.size not in (1, length) or (values < 1).any():
        raise _damaged(path, "no sampling rate 'sr'")
    return np.broadcast_to(values.reshape(-1), length).astype(np.int64)
