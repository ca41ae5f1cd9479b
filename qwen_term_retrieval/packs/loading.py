"""Rows by name: what `--dataset` of the scripts and DATASET of `qtr` mean.

>>> load_rows("packs/mine")                  # a pack
>>> load_rows("recordings")                  # a corpus folder, as `qtr pack` reads it; packed once, into the cache
>>> load_rows("builders/term_audio")         # a folder whose card names the files of its splits
>>> load_rows("user/pack")                   # any of these on the Hub
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets
from huggingface_hub import DatasetCard
from huggingface_hub.errors import HFValidationError

from qwen_term_retrieval.registration import BUILDER_NAME

NEEDED = ("audio", "text", "terms", "duration")


def load_rows(dataset: str, needed: Sequence[str] = NEEDED) -> datasets.DatasetDict:
    """The rows of every split.

    Args:
        needed: columns that they must have; those of a term corpus where left out.

    Raises:
        FileNotFoundError: neither this machine nor the Hub has it, or there is no audio in it.
        ValueError: its rows are not those of a term corpus.
    """
    folder = Path(dataset)
    if folder.is_file():
        raise ValueError(f"{dataset} is a file: make a pack of it with `qtr pack {dataset} PACK`, and give that")
    if folder.is_dir() and not _names_its_splits(folder):
        return datasets.load_dataset(BUILDER_NAME, data_dir=dataset)
    try:
        splits = datasets.load_dataset(dataset)
    except (ConnectionError, FileNotFoundError, HFValidationError) as error:
        why = "its card names a file that is not there" if folder.is_dir() else "no folder here, nor given by the Hub"
        raise FileNotFoundError(f"no dataset {dataset!r}: {why}: {error}") from error
    for split, rows in splits.items():
        missing = [column for column in needed if column not in rows.column_names]
        if missing:
            raise ValueError(
                f"{dataset}, split {split!r}: no column {', '.join(missing)}, only {', '.join(rows.column_names)}. "
                "Make a pack of it: docs/data.md says how to name columns that are called otherwise"
            )
    return splits


def _names_its_splits(folder: Path) -> bool:
    card = folder / "README.md"
    return card.is_file() and bool(DatasetCard.load(card).data.get("configs"))


def split_of(splits: datasets.DatasetDict, split: str, dataset: str, setting: str = "--split") -> datasets.Dataset:
    """The rows of one split.

    Args:
        dataset: for the message.
        setting: how another split is chosen, for the message.

    Raises:
        ValueError: there is no such split; says which there are, and how to get it.
    """
    if split not in splits:
        raise ValueError(
            f"{dataset} has no split {split!r}; it has {sorted(splits)}. Put the recordings into folders train, "
            f"validation and test, or give their table a column `split`; or choose another with {setting}"
        )
    return splits[split]


def load_split(dataset: str, split: str) -> datasets.Dataset:
    """The rows of one split of a dataset; raises what `load_rows` and `split_of` raise."""
    return split_of(load_rows(dataset), split, dataset)
