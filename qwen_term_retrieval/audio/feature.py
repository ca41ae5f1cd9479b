"""`MmapAudio`, the `datasets` feature of packed audio, and `Clip`, what its rows decode to.

Arrow holds a reference: the uid of a shard, offset and length. A `Clip` is that reference with the samples behind it: a
Mapping, so that `map`, `save_to_disk` and pickling keep the reference; with `__array__`, so that the torch and numpy
formats give float32; and with `["array"]` and `["sampling_rate"]`, as the audio of other datasets has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import soundfile
from datasets.table import array_cast

from qwen_term_retrieval.audio.locations import shard_samples
from qwen_term_retrieval.audio.shards import PackError

REFERENCE_TYPE = pa.struct({"shard": pa.int64(), "offset": pa.int64(), "length": pa.int64()})
_FULL_SCALE = np.float32(1 / 32768)


class Clip(Mapping[str, Any]):
    """A window of packed audio.

    >>> clip = rows[0]["audio"]
    >>> clip.pcm                                  # int16 (num_samples,), a view: nothing is copied
    >>> clip["array"], clip["sampling_rate"]      # float32 (num_samples,) in [-1, 1), Hz
    >>> clip.trim(0.5, 1.25).to_wav("word.wav")   # seconds
    """

    __slots__ = ("length", "offset", "sampling_rate", "shard")

    def __init__(self, shard: int, offset: int, length: int, sampling_rate: int) -> None:
        self.shard = shard
        self.offset = offset
        self.length = length
        self.sampling_rate = sampling_rate

    @property
    def pcm(self) -> np.ndarray:
        """int16 (num_samples,), read-only, zero-copy.

        Raises:
            MissingShardError: the pack is not where it was; PackError: the reference points past the shard's end.
        """
        pcm = shard_samples(self.shard)[self.offset : self.offset + self.length]
        if len(pcm) != self.length:
            raise PackError(f"{self!r} reaches past the end of its shard; the dataset and the pack do not match")
        return pcm

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.length / self.sampling_rate

    def trim(self, start: float, end: float) -> Clip:
        """The window from `start` to `end` seconds of this clip: a new reference, no samples are copied.

        Raises:
            ValueError: unless 0 ≤ start < end ≤ duration.
        """
        first, last = round(start * self.sampling_rate), round(end * self.sampling_rate)
        if not 0 <= first < last <= self.length:
            raise ValueError(f"cannot trim a clip of {self.duration:.3f} s to {start} … {end} s")
        return Clip(self.shard, self.offset + first, last - first, self.sampling_rate)

    def to_wav(self, file: str | Path | BinaryIO) -> None:
        """Write 16-bit WAV to a path or a binary file."""
        soundfile.write(file, self.pcm, self.sampling_rate, subtype="PCM_16", format="WAV")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if dtype is not None and np.dtype(dtype) == np.int16:
            return self.pcm.copy() if copy else self.pcm
        samples = np.multiply(self.pcm, _FULL_SCALE, dtype=np.float32)
        return samples if dtype is None else samples.astype(dtype, copy=False)

    def __getitem__(self, key: str) -> Any:
        if key == "array":
            return self.__array__()
        if key in self.__slots__:
            return getattr(self, key)
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        # What `datasets` stores: the fields of the reference, and no more.
        return iter(REFERENCE_TYPE.names)

    def __len__(self) -> int:
        return len(REFERENCE_TYPE)

    # Mapping compares by content, and datasets 5.2 decodes the items of a List only if decoded != raw.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return Clip, (self.shard, self.offset, self.length, self.sampling_rate)

    def __repr__(self) -> str:
        return f"Clip({self.duration:.2f} s, shard {self.shard:016x}, offset {self.offset}, length {self.length})"


@dataclass
class MmapAudio:
    """Feature of a column of packed audio; rows decode to `Clip`, or with `decode=False` to the bare reference."""

    sampling_rate: int = 16_000
    decode: bool = True
    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "dict"
    pa_type: ClassVar[Any] = REFERENCE_TYPE
    _type: str = field(default="MmapAudio", init=False, repr=False)

    def __call__(self) -> pa.DataType:
        return self.pa_type

    def encode_example(self, value: Any) -> dict[str, int]:
        """The reference behind a `Clip` or a mapping with shard, offset and length."""
        try:
            return {name: int(value[name]) for name in REFERENCE_TYPE.names}
        except (KeyError, TypeError, IndexError) as error:
            raise TypeError(
                f"MmapAudio stores references to packed audio, not {type(value).__name__}; "
                "pack the audio first with qwen_term_retrieval.pack_corpus"
            ) from error

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> Clip:
        return value if isinstance(value, Clip) else Clip(**value, sampling_rate=self.sampling_rate)

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        return array_cast(storage, self.pa_type)

    def embed_storage(
        self,
        storage: pa.Array,
        token_per_repo_id: dict[str, Any] | None = None,
        local_files: bool = True,
        remote_files: bool = True,
    ) -> pa.Array:
        """Keep references in what stays on this machine; refuse to publish them, where they would point at nothing.

        `save_to_disk` asks to embed local files only, `push_to_hub` all (datasets 5.2).
        """
        if remote_files:
            raise ValueError(
                "this column holds references to a pack on this machine. To publish real audio, push "
                "qwen_term_retrieval.to_hf_audio(dataset); to publish the pack, upload its folder: "
                "`hf upload-large-folder USER/NAME PACK --repo-type dataset`"
            )
        return storage

    def flatten(self) -> dict[str, datasets.Value]:
        if self.decode:
            raise ValueError("Cannot flatten a decoded MmapAudio feature.")
        return {name: datasets.Value("int64") for name in REFERENCE_TYPE.names}


def to_hf_audio(dataset: datasets.Dataset, column: str = "audio", **map_kwargs: Any) -> datasets.Dataset:
    """A copy of the dataset whose clips are WAV files inside it, under the stock `datasets.Audio` feature.

    Such a dataset can be pushed to the Hub, for those who do not have this library. It costs the audio's size on disk.
    """
    feature = dataset.features[column]
    if not isinstance(feature, MmapAudio):
        raise TypeError(f"column {column!r} is {feature}, not MmapAudio")
    embedded = datasets.Features(
        {**dataset.features, column: {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    )
    converted = dataset.map(
        _wav_of_row, fn_kwargs={"column": column}, features=embedded, desc="converting to WAV", **map_kwargs
    )
    return converted.cast_column(column, datasets.Audio(sampling_rate=feature.sampling_rate))


def _wav_of_row(row: dict[str, Any], column: str) -> dict[str, Any]:
    if row[column] is None:
        return {column: None}
    buffer = BytesIO()
    row[column].to_wav(buffer)
    return {column: {"bytes": buffer.getvalue(), "path": f"{row.get('key', 'clip').replace('/', '_')}.wav"}}
