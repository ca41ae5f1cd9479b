"""Shards of the system before this one: raw int16, and an index beside each.

A legacy shard is `shard_00000.dat`, raw int16 mono without a header, and `shard_00000.index.npz` with arrays `key`,
`relpath`, `offset`, `length` (int64, in samples) and `sr`. The old writer saved keys and paths as pickled objects, and
unpickling runs whatever code the file holds: such an index opens only with `allow_pickle=True`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from qwen_term_retrieval.corpora.locations import Location
from qwen_term_retrieval.corpora.row_rules import RowRules
from qwen_term_retrieval.corpora.utterance import Utterance, split_of_path
from qwen_term_retrieval.errors import CorpusError, PackError

DTYPE = "<i2"
_SAMPLE_BYTES = 2
_PACK_JSON = "pack.json"


def read_legacy(folder: Location, rules: RowRules) -> Iterator[Utterance]:
    """Yield the recordings of a folder of legacy shards, which must lie on this machine."""
    if not isinstance(folder, Path):
        raise CorpusError(f"{folder}: legacy shards are mapped into memory; copy them to this machine")
    for utterance in legacy_utterances(folder, rules.allow_pickle):
        yield replace(utterance, split=rules.split or utterance.split)


def legacy_utterances(folder: str | Path, allow_pickle: bool = False) -> Iterator[Utterance]:
    """The recordings of legacy shards, in order, with an extra column `relpath`; they have no text and no terms.

    Raises:
        FileNotFoundError, PackError: as `MMapAudioCollection`.
        CorpusError: the folder is a pack.
    """
    folder = Path(folder).absolute()
    if (folder / _PACK_JSON).exists():
        raise CorpusError(f"{folder} is a pack already; open it with load_dataset({str(folder)!r})")
    for shard in open_shards(folder, allow_pickle):
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
    return not (folder / _PACK_JSON).exists() and any(_index_of(path).is_file() for path in folder.glob("shard_*.dat"))


@dataclass(frozen=True)
class LegacyShard:
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


def open_shards(folder: Path, allow_pickle: bool) -> list[LegacyShard]:
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


def _open_shard(path: Path, allow_pickle: bool) -> LegacyShard:
    index = _index_of(path)
    num_bytes = path.stat().st_size
    if num_bytes % _SAMPLE_BYTES:
        raise PackError(f"{path}: {num_bytes} bytes are no whole number of int16 samples. Was a copy cut short?")
    arrays = _read_index(index, allow_pickle)
    key = _strings(arrays, "key", index)
    offset, length = (_integers(arrays, name, index, len(key)) for name in ("offset", "length"))
    num_samples = num_bytes // _SAMPLE_BYTES
    # In this order no sum can overflow.
    wrong = (offset < 0) | (length < 1) | (length > num_samples) | (offset > num_samples - length)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise PackError(
            f"{index}: clip {key[at].as_py()!r} lies at samples {offset[at]} + {length[at]}, outside of {path.name} "
            f"with its {num_samples} samples. Was the shard cut short, or is the index another's?"
        )
    return LegacyShard(
        path,
        np.memmap(path, DTYPE, "r") if num_samples else np.zeros(0, DTYPE),
        key,
        _strings(arrays, "relpath", index, len(key)) if "relpath" in arrays else key,
        offset,
        length,
        _rates(arrays, index, len(key)),
    )


def _index_of(shard: Path) -> Path:
    return shard.with_suffix(".index.npz")


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
