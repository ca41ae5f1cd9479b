"""Glossary files to entries, in whichever format."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Of a table; read as they are written, because a column of numbers would lose "0", and "007" its zeros.
_TEXT_COLUMNS = ("term", "aliases", "language", "pronunciations", "pronunciation", "weight", "threshold")


def read_entries(path: Path) -> Iterable[str | Mapping[str, Any]]:
    """The entries of a glossary file, unchecked; see `Glossary.from_file`."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_table(path)
    text = _read_text(path)
    if suffix in {".csv", ".tsv"}:
        return _read_table(path, delimiter="\t" if suffix == ".tsv" else _delimiter(text))
    if suffix == ".json":
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
        if isinstance(content, dict):
            return [
                {"term": term, **_parse_json_value(value, f"{path}, entry {row} ({term!r})")}
                for row, (term, value) in enumerate(content.items(), start=1)
            ]
        if not isinstance(content, list):
            raise ValueError(f"{path}: expected a list of terms or a dict keyed by term, not {type(content).__name__}")
        return content
    if suffix == ".jsonl":
        # Not `splitlines`, which also splits at U+2028 and others that JSON may hold as they are.
        return [_parse_json_line(path, number, line) for number, line in enumerate(io.StringIO(text), start=1)]
    return text.splitlines()


def _parse_json_value(value: Any, where: str) -> Mapping[str, Any]:
    """What a dict keyed by term says of one of them."""
    if value is None:
        return {}
    if isinstance(value, list):
        return {"aliases": value}
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a list of aliases, a mapping or null, not {value!r}")
    return value


def _parse_json_line(path: Path, number: int, line: str) -> str | Mapping[str, Any]:
    try:
        return json.loads(line) if line.strip() else ""
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON: {error.msg}") from error


def _read_table(path: Path, delimiter: str | None = None) -> list[Mapping[str, Any]]:
    """The rows of a table: Parquet where no delimiter is given."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if delimiter is None:
            table = parquet.read_table(path)
        else:
            as_text = csv.ConvertOptions(column_types=dict.fromkeys(_TEXT_COLUMNS, pa.string()))
            layout = csv.ParseOptions(delimiter=delimiter)
            table = csv.read_csv(path, parse_options=layout, convert_options=as_text)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: {error}") from error
    if "term" not in table.column_names:
        raise ValueError(
            f"{path}: no column 'term'; it has {table.column_names}. Rename the column of terms to 'term'."
        )
    return [row | {"term": str(row["term"] or "")} for row in table.to_pylist()]


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4096)
    # UTF-16 has zeros too, and a remedy of its own.
    if b"\0" in start and not start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(
            f"{path} is no text. A glossary is a .txt, .csv, .tsv, .json, .jsonl or .parquet file; save a workbook as "
            "CSV in UTF-8."
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8. Save the file as UTF-8.") from error


def _delimiter(text: str) -> str:
    """Spreadsheets divide by semicolons where the comma is the decimal sign."""
    header = text.partition("\n")[0]
    by = [each for each in ",;\t" if "term" in (name.strip(' "\n') for name in header.split(each))]
    return by[0] if by else ","
