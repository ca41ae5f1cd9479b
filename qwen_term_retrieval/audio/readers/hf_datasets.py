"""Datasets of Hugging Face `datasets`, in memory or saved by `save_to_disk`: any with a column of audio or of bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from qwen_term_retrieval.audio.feature import MmapAudio
from qwen_term_retrieval.audio.readers.files import Location
from qwen_term_retrieval.audio.readers.rows import COLUMNS, RowRules, to_utterance
from qwen_term_retrieval.audio.utterance import CorpusError, Utterance, checked_split, split_rank

ROWS_PER_BATCH = 256
_BINARY = ("binary", "large_binary")


def read_saved_dataset(folder: Location, rules: RowRules) -> Iterator[Utterance]:
    """Yield the rows of a folder that `save_to_disk` wrote."""
    return read_dataset(datasets.load_from_disk(str(folder)), rules)


def read_dataset(dataset: datasets.Dataset | datasets.DatasetDict, rules: RowRules) -> Iterator[Utterance]:
    """Yield the rows of a dataset; the keys of a `DatasetDict` name the splits.

    Audio is the column `audio` (or the only column of audio or bytes): `datasets.Audio`, whose bytes or paths are taken
    undecoded, encoded bytes, or packed clips. A row without `key` is named by its audio's path, or else by its split
    and number.

    Raises:
        CorpusError: no column of audio, or several.
    """
    if isinstance(dataset, datasets.DatasetDict):
        for name in sorted(dataset, key=split_rank):
            split = checked_split(str(name), "DatasetDict")
            yield from _read_split(dataset[name], rules, split)
        return
    named = str(dataset.split) if dataset.split is not None and str(dataset.split).isidentifier() else None
    yield from _read_split(dataset, rules, checked_split(named, "dataset") if named else None)


def _read_split(dataset: datasets.Dataset, rules: RowRules, split: str | None) -> Iterator[Utterance]:
    column = _audio_column(dataset.features, rules)
    feature = dataset.features[column]
    if isinstance(feature, datasets.Audio):
        dataset = dataset.cast_column(column, datasets.Audio(decode=False))
    audio_name = rules.columns.get("audio", "audio")
    number = 0
    for table in dataset.with_format("arrow").iter(ROWS_PER_BATCH):
        for row in table.to_pylist():
            number += 1
            where = f"dataset{f', split {split}' if split else ''}, row {number}"
            row[audio_name] = _audio(row.pop(column), feature, f"{split or 'train'}/{number:08d}", where)
            yield to_utterance(row, where, Path(), rules, folder_split=split)


def _audio(value: Any, feature: Any, name: str, where: str) -> Any:
    """A cell as `to_utterance` takes it; `name` is the path of audio that has none."""
    if value is None:
        raise CorpusError(f"{where}: the audio is null; give audio, or drop the row")
    if isinstance(feature, MmapAudio):
        clip = feature.decode_example(value)
        return {"array": clip.pcm, "sampling_rate": clip.sampling_rate, "path": name}
    if isinstance(value, bytes):
        return {"bytes": value, "path": name}
    if isinstance(value, dict) and value.get("bytes") and not value.get("path"):
        return {"bytes": value["bytes"], "path": name}
    return value


def _audio_column(features: datasets.Features, rules: RowRules) -> str:
    if "audio" in rules.columns:
        candidates = [name for name in features if name == rules.columns["audio"]]
    else:
        named = [name for name in COLUMNS["audio"] if name in features]
        candidates = named or [name for name, feature in features.items() if _holds_audio(feature)]
    if len(candidates) != 1:
        raise CorpusError(
            f"the dataset has {len(candidates)} columns of audio among {sorted(features)}; say which: "
            "columns={'audio': 'name'}"
        )
    return candidates[0]


def _holds_audio(feature: Any) -> bool:
    return isinstance(feature, datasets.Audio | MmapAudio) or getattr(feature, "dtype", None) in _BINARY
