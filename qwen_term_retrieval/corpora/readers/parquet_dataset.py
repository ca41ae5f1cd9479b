"""Folders of Parquet with the audio inside: `data/train-00000-of-00002.parquet`, as datasets lie on the Hub.

`qtr export --format dataset` and `push_to_hub` of `datasets` write them; the split stands in the file's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from qwen_term_retrieval.corpora.locations import Location, joined, parent, walk
from qwen_term_retrieval.corpora.readers.parquet_rows import parquet_rows
from qwen_term_retrieval.corpora.row_rules import RowRules, to_utterance
from qwen_term_retrieval.corpora.utterance import Utterance, checked_split, split_rank

DATA = "data"
_TABLE = re.compile(r"(?P<split>\w+(?:\.\w+)*)-\d{5}(?:-of-\d{5})?(?:-[0-9a-f]+)?\.parquet")


def has_tables(names: Iterable[str]) -> bool:
    """Whether files of these names are a dataset's."""
    return any(_TABLE.fullmatch(name) for name in names)


def read_parquet_dataset(folder: Location, rules: RowRules) -> Iterator[Utterance]:
    """Yield the rows of all tables below a folder, split by split.

    Raises:
        CorpusError: a broken table or a bad row.
        FileNotFoundError: no file is named as those tables are.
    """
    for split, file in find_tables(folder):
        for where, row in parquet_rows(file):
            yield to_utterance(row, where, parent(file), rules, folder_split=split)


def find_tables(folder: Location) -> list[tuple[str, Location]]:
    """Split and table, as the names of the files below a folder tell, split by split.

    Raises:
        FileNotFoundError: no file is named so.
    """
    names = [(_TABLE.fullmatch(PurePosixPath(path).name), path) for path in walk(folder)]
    tables = [(_split(named), joined(folder, path)) for named, path in names if named]
    if not tables:
        raise FileNotFoundError(f"{folder} holds no table of a name like train-00000-of-00001.parquet")
    return sorted(tables, key=lambda table: split_rank(table[0]))


def _split(named: re.Match[str]) -> str:
    """`train.clean.100` is `train_clean_100` here, where no other split has a dot."""
    return checked_split(named["split"].replace(".", "_"), named[0])
