"""Rows of CSV and TSV: cells are text, lists are split by `|`, an empty cell is null."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Set
from typing import Any

from qwen_term_retrieval.corpora.locations import Location, suffix_of, text_lines
from qwen_term_retrieval.errors import CorpusError


def csv_rows(file: Location, list_columns: Set[str]) -> Iterator[tuple[str, Any]]:
    """Yield `(where, row)`; a `.tsv` is split at tabs, all else at commas.

    Raises:
        CorpusError: naming the line with more cells than the header, or with a quote that never ends.
    """
    delimiter = "\t" if suffix_of(file) == ".tsv" else ","
    reader = csv.DictReader((line for _, line in text_lines(file)), delimiter=delimiter)
    try:
        for name in (names := list(reader.fieldnames or ())):
            if names.count(name) > 1:
                raise CorpusError(f"{file}: its header names {name!r} twice; rename one")
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row:
                raise CorpusError(f"{where}: more cells than the header; quote cells that hold {delimiter!r}")
            # A column without a name holds the row numbers that pandas writes.
            yield where, {name: _cell(value, name in list_columns) for name, value in row.items() if name}
    except csv.Error as error:
        raise CorpusError(f"{file}, line {reader.line_num}: {error}; is a quote not closed?") from error


def _cell(cell: str | None, is_list: bool) -> str | list[str] | None:
    if not cell:
        return None
    return cell.split("|") if is_list else cell
