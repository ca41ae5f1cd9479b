"""`ClipFeature`, what the `datasets` features of clips share, and the way from one to the stock `datasets.Audio`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, ClassVar

import datasets
import pyarrow as pa
import soundfile
from datasets.table import array_cast

from qwen_term_retrieval.audio.clip import AudioClip


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
