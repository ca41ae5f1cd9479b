"""Datasets of Hugging Face `datasets`, in memory or saved by `save_to_disk`: any with a column of audio or of bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from qwen_term_retrieval.audio.clip_feature import ClipFeature
from qwen_term_retrieval.corpora.locations import Location
from qwen_term_retrieval.corpora.row_rules import COLUMNS, RowRules, to_utterance
from qwen_term_retrieval.corpora.utterance import Utterance, checked_split, split_rank
from qwen_term_retrieval.errors import CorpusError

ROWS_PER_BATCH = 256
_BINARY = ("binary", "large_binary")


AnySplit: TypeAlias = datasets.Dataset | datasets.IterableDataset
AnyDataset: TypeAlias = AnySplit | datasets.DatasetDict | datasets.IterableDatasetDict


def read_saved_dataset(folder: Location, rules: RowRules) -> Iterator[Utterance]:
    """Yield the rows of a folder that `save_to_disk` wrote."""
    return read_dataset(datasets.load_from_disk(str(folder)), rules)


def num_rows(dataset: AnyDataset) -> int | None:
    """Rows of all splits; None where a dataset is streamed."""
    if isinstance(dataset, datasets.DatasetDict):
        return sum(dataset.num_rows.values())
    return dataset.num_rows if isinstance(dataset, datasets.Dataset) else None


def read_dataset(dataset: AnyDataset, rules: RowRules) -> Iterator[Utterance]:
    """Yield the rows of a dataset; the keys of a `DatasetDict` name the splits.

    Audio is the column `audio` (or the only column of audio or bytes): `datasets.Audio`, whose bytes or paths are taken
    undecoded, encoded bytes, or packed clips. A row without `key` is named by its audio's path, or else by its split
    and number.

    Raises:
        CorpusError: no column of audio, or several; no dataset at all.
    """
    if not isinstance(dataset, AnyDataset):
        raise CorpusError(f"{type(dataset).__name__} is no corpus; give a path, a URL or a dataset")
    if isinstance(dataset, dict):
        for name in sorted(dataset, key=split_rank):
            split = checked_split(str(name), "DatasetDict")
            yield from _read_split(dataset[name], rules, split)
        return
    named = str(dataset.split) if dataset.split is not None and str(dataset.split).isidentifier() else None
    yield from _read_split(dataset, rules, checked_split(named, "dataset") if named else None)


def _read_split(dataset: AnySplit, rules: RowRules, split: str | None) -> Iterator[Utterance]:
    column = _audio_column(dataset.features, rules)
    feature = dataset.features[column]
    if isinstance(feature, datasets.Audio):
        dataset = dataset.cast_column(column, datasets.Audio(decode=False))
    # Named, so that a column "file_name" beside it is one to pass through.
    rules = replace(rules, columns={**rules.columns, "audio": column})
    rows = chain.from_iterable(table.to_pylist() for table in dataset.with_format("arrow").iter(ROWS_PER_BATCH))
    for number, row in enumerate(rows, start=1):
        where = f"dataset{f', split {split}' if split else ''}, row {number}"
        row[column] = _audio(row[column], feature, f"{split or 'train'}/{number:08d}", where)
        yield to_utterance(row, where, Path(), rules, folder_split=split)


def _audio(value: Any, feature: Any, name: str, where: str) -> Any:
    """A cell as `to_utterance` takes it; `name` is the path of audio that has none."""
    if value is None:
        raise CorpusError(f"{where}: the audio is null; give audio, or drop the row")
    if isinstance(feature, ClipFeature):
        clip = feature.decode_example(value)
        return {"array": clip.pcm, "sampling_rate": clip.sampling_rate, "path": name}
    if isinstance(value, bytes):
        return {"bytes": value, "path": name}
    if isinstance(value, dict) and value.get("bytes") and not value.get("path"):
        return {"bytes": value["bytes"], "path": name}
    return value


def _audio_column(features: datasets.Features | None, rules: RowRules) -> str:
    if features is None:
        raise CorpusError("a streamed dataset whose columns are not known before its rows; load it without streaming")
    if "audio" in rules.columns:
        candidates = [name for name in features if name == rules.columns["audio"]]
    else:
        heard = [name for name, feature in features.items() if isinstance(feature, datasets.Audio | ClipFeature)]
        named = [name for name in COLUMNS["audio"] if name in features]
        encoded = [name for name, feature in features.items() if getattr(feature, "dtype", None) in _BINARY]
        candidates = heard or named or encoded
    if len(candidates) != 1:
        raise CorpusError(
            f"the dataset has {len(candidates)} columns of audio among {sorted(features)}; say which: "
            "columns={'audio': 'name'}"
        )
    return candidates[0]
