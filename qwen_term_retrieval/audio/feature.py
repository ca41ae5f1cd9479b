"""`MmapAudio`, the `datasets` feature of packed audio, and `Clip`, what its rows decode to.

Arrow holds a reference: the uid of a shard, offset and length. A `Clip` is that reference with the samples behind it: a
Mapping, so that `map`, `save_to_disk` and pickling keep the reference; with `__array__`, so that the torch and numpy
formats give float32; and with `["array"]` and `["sampling_rate"]`, as the audio of other datasets has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import soundfile
from datasets.table import array_cast

from qwen_term_retrieval.audio.pack_format.locations import shard_samples
from qwen_term_retrieval.audio.pack_format.shards import PackError
from qwen_term_retrieval.audio.pack_format.verification import verified_samples

REFERENCE_TYPE = pa.struct({"shard": pa.int64(), "offset": pa.int64(), "length": pa.int64()})
_FULL_SCALE = np.float32(1 / 32768)


class AudioClip(Mapping[str, Any]):
    """A window of audio whose samples are read when asked for; what it stores is a reference to them.

    `FIELDS` names the parts of that reference, as the Arrow column holds them.
    """

    __slots__ = ("length", "sampling_rate")
    FIELDS: ClassVar[tuple[str, ...]]

    def __init__(self, length: int, sampling_rate: int) -> None:
        self.length = length
        self.sampling_rate = sampling_rate

    @property
    def pcm(self) -> np.ndarray:
        """int16 (num_samples,), read-only."""
        raise NotImplementedError

    def window(self, first: int, length: int) -> AudioClip:
        """`length` samples of this clip from sample `first` on, as a reference."""
        raise NotImplementedError

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.length / self.sampling_rate

    def trim(self, start: float, end: float) -> AudioClip:
        """The window from `start` to `end` seconds of this clip: a new reference, no samples are copied.

        Raises:
            ValueError: unless 0 ≤ start < end ≤ duration.
        """
        first, last = round(start * self.sampling_rate), round(end * self.sampling_rate)
        if not 0 <= first < last <= self.length:
            raise ValueError(f"cannot trim a clip of {self.duration:.3f} s to {start} … {end} s")
        return self.window(first, last - first)

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
        if key == "sampling_rate" or key in self.FIELDS:
            return getattr(self, key)
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        # What `datasets` stores: the fields of the reference, and no more.
        return iter(self.FIELDS)

    def __len__(self) -> int:
        return len(self.FIELDS)

    # Mapping compares by content, and datasets 5.2 decodes the items of a List only if decoded != raw.
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Clip(AudioClip):
    """A window of packed audio; with `verify`, one that proves its samples each time it gives them.

    >>> clip = rows[0]["audio"]
    >>> clip.pcm                                  # int16 (num_samples,), a view: nothing is copied
    >>> clip["array"], clip["sampling_rate"]      # float32 (num_samples,) in [-1, 1), Hz
    >>> clip.trim(0.5, 1.25).to_wav("word.wav")   # seconds
    """

    __slots__ = ("offset", "shard", "verify")
    FIELDS = tuple(REFERENCE_TYPE.names)

    def __init__(self, shard: int, offset: int, length: int, sampling_rate: int, verify: bool = False) -> None:
        super().__init__(length, sampling_rate)
        self.shard = shard
        self.offset = offset
        self.verify = verify

    @property
    def pcm(self) -> np.ndarray:
        """int16 (num_samples,), read-only: a view of the memory map, or with `verify` a copy that was checked.

        Raises:
            MissingShardError: the pack is not where it was; PackError: the reference points past the shard's end, or
                the samples are not those that were packed.
        """
        if self.verify:
            return verified_samples(self.shard, self.offset, self.length)
        pcm = shard_samples(self.shard)[self.offset : self.offset + self.length]
        if len(pcm) != self.length:
            raise PackError(f"{self!r} reaches past the end of its shard; the dataset and the pack do not match")
        return pcm

    def window(self, first: int, length: int) -> Clip:
        return Clip(self.shard, self.offset + first, length, self.sampling_rate, self.verify)

    def __reduce__(self) -> tuple[Any, ...]:
        return Clip, (self.shard, self.offset, self.length, self.sampling_rate, self.verify)

    def __repr__(self) -> str:
        return f"Clip({self.duration:.2f} s, shard {self.shard:016x}, offset {self.offset}, length {self.length})"


@dataclass
class ClipFeature:
    """What the features of this library share: a column of references that decode to clips."""

    sampling_rate: int = 16_000
    decode: bool = True
    dtype: ClassVar[str] = "dict"
    pa_type: ClassVar[Any]
    not_stored: ClassVar[str]
    not_published: ClassVar[str]

    def __call__(self) -> pa.DataType:
        return self.pa_type

    def encode_example(self, value: Any) -> dict[str, Any]:
        """The reference behind a clip, or behind a mapping with the fields of one."""
        try:
            return {name: value[name] for name in self.pa_type.names}
        except (KeyError, TypeError, IndexError) as error:
            raise TypeError(
                f"{type(self).__name__} stores {self.not_stored}, not {type(value).__name__}; "
                "pack the audio first with qwen_term_retrieval.pack_corpus"
            ) from error

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> AudioClip:
        raise NotImplementedError

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
            raise ValueError(f"this column holds {self.not_published}")
        return storage

    def flatten(self) -> dict[str, datasets.Features]:
        if self.decode:
            raise ValueError(f"Cannot flatten a decoded {type(self).__name__} feature.")
        return dict(datasets.Features.from_arrow_schema(pa.schema(list(self.pa_type))))


@dataclass
class MmapAudio(ClipFeature):
    """Feature of a column of packed audio; rows decode to `Clip`, or with `decode=False` to the bare reference.

    With `verify`, every read of samples checks the CRC of the packed clip they belong to: altered audio is an error.
    """

    verify: bool = False
    id: str | None = field(default=None, repr=False)
    pa_type: ClassVar[Any] = REFERENCE_TYPE
    not_stored: ClassVar[str] = "references to packed audio"
    not_published: ClassVar[str] = (
        "references to a pack on this machine. To publish the pack: Pack.open(folder).push_to_hub('USER/NAME'). To "
        "publish audio that needs no plugin: qwen_term_retrieval.to_hf_audio(dataset).push_to_hub('USER/NAME'), or "
        "upload what `qtr export` writes"
    )
    _type: str = field(default="MmapAudio", init=False, repr=False)

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> AudioClip:
        return value if isinstance(value, Clip) else Clip(**value, sampling_rate=self.sampling_rate, verify=self.verify)


def to_hf_audio(
    dataset: datasets.Dataset, column: str = "audio", *, format: str = "wav", **map_kwargs: Any
) -> datasets.Dataset:
    """A copy of the dataset whose clips are audio files inside it, under the stock `datasets.Audio` feature.

    Such a dataset can be pushed to the Hub, for those who do not have this library. It costs the audio's size on disk;
    FLAC, as lossless as WAV, about half of it.

    Args:
        dataset: with a column of packed audio, or of audio served from files.
        column: its name.
        format: "wav" or "flac", 16 bits.
        map_kwargs: for `Dataset.map`, such as `num_proc`.

    Raises:
        TypeError: the column holds no clips; ValueError: another format.
    """
    if format not in ("wav", "flac"):
        raise ValueError(f"format={format!r}; it must be 'wav' or 'flac'")
    feature = dataset.features[column]
    if not isinstance(feature, ClipFeature):
        raise TypeError(f"column {column!r} is {feature}, not MmapAudio or FileAudio")
    embedded = datasets.Features(
        {**dataset.features, column: {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    )
    converted = dataset.cast_column(column, replace(feature, decode=True)).map(
        _file_of_row,
        fn_kwargs={"column": column, "format": format},
        features=embedded,
        desc=f"converting to {format.upper()}",
        **map_kwargs,
    )
    return converted.cast_column(column, datasets.Audio(sampling_rate=feature.sampling_rate))


def _file_of_row(row: dict[str, Any], column: str, format: str) -> dict[str, Any]:
    clip = row[column]
    if clip is None:
        return {column: None}
    buffer = BytesIO()
    soundfile.write(buffer, clip.pcm, clip.sampling_rate, subtype="PCM_16", format=format.upper())
    return {column: {"bytes": buffer.getvalue(), "path": f"{row.get('key', 'clip').replace('/', '_')}.{format}"}}
