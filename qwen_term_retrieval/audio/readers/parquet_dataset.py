"""Folders of Parquet with the audio inside: `data/train-00000-of-00002.parquet`, as datasets lie on the Hub.

`qtr export --format dataset` and `push_to_hub` of `datasets` write them; the split stands in the file's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from qwen_term_retrieval.audio.readers.files import Location, joined, parent, walk
from qwen_term_retrieval.audio.readers.parquet_rows import parquet_rows
from qwen_term_retrieval.audio.readers.rows import RowRules, to_utterance
from qwen_term_retrieval.audio.utterance import Utterance, checked_split, split_rank

DATA = "data"
_TABLE = re.compile(r"(?P<split>\w+(?:\.\w+)*)-\d{5}(?:-of-\d{5})?(?:-[0-9a-f]+)?\.parquet")


def has_tables(names: Iterable[str]) -> bool:
    """Whether files of these names are a dataset's."""
    return any(_TABLE.fullmatch(name) for name in names)


def read_parquet_dataset(folder: Location, rules: RowRules) -> Iterator[Utterance]:
    """Yield the rows of all tables below a folder, split by split.

    Raises:
        CorpusError: a broken table, a bad row, or an impossible name of a split.
        FileNotFoundError: no file is named as those tables are.
    """
    tables = [
        (rules.split or checked_split(named["split"], str(joined(folder, path))), path)
        for path in walk(folder)
        if (named := _TABLE.fullmatch(PurePosixPath(path).name))
    ]
    if not tables:
        raise FileNotFoundError(f"{folder} holds no train-00000-of-00001.parquet or the like; give another format")
    for split, path in sorted(tables, key=lambda table: split_rank(table[0])):
        file = joined(folder, path)
        for where, row in parquet_rows(file):
            yield to_utterance(row, where, parent(file), rules, folder_split=split)
