"""Manifests: one reader a file format, and the one place where a row becomes an `Utterance`."""

from __future__ import annotations

import csv
import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_term_retrieval.audio.utterance import (
    CorpusError,
    TermSpan,
    Utterance,
    checked_split,
    default_key,
    split_of_path,
)
from qwen_term_retrieval.text.glossary import MAX_TERM_WORDS

MANIFEST_SUFFIX = ".termaudio"
COLUMNS = {
    "audio": ("audio", "file_name", "audio_filepath", "term_chunk_audio"),
    "key": ("key",),
    "text": ("text", "transcription", "transcript", "sentence", "term_chunk_text"),
    "terms": ("terms", "term_chunk_audio_ground_truth_terms"),
    "term_starts": ("term_starts",),
    "term_ends": ("term_ends",),
    "speaker": ("speaker",),
    "language": ("language",),
    "split": ("split",),
    # Measured when packing; what the manifest says of it is not kept.
    "duration": ("duration",),
}
_LISTS = {name for column in ("terms", "term_starts", "term_ends") for name in COLUMNS[column]}
MAX_KEY_BYTES = 1024
_SUGGEST_ABOVE = 0.8

Row = Mapping[str, Any]


def read_manifest(path: Path, *, root: Path, split: str | None = None) -> Iterator[Utterance]:
    """Yield the utterances of one manifest; keys are relative to `root`, audio paths to the manifest's folder."""
    if not is_manifest(path):
        raise CorpusError(f"{path}: no manifest format has the suffix {path.suffix!r}; known are {', '.join(_READERS)}")
    folder_split = split_of_path(path.relative_to(root)) if path.is_relative_to(root) else None
    for where, row in _READERS[path.suffix.lower()](path):
        if not isinstance(row, Mapping):
            raise CorpusError(f"{where}: expected an object with the column 'audio', not {str(row)[:60]!r}")
        yield _to_utterance(row, where, path.parent, root, split, folder_split)


def _read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in _text_lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error


def _read_json(path: Path) -> Iterator[tuple[str, Row]]:
    text = "".join(line for _, line in _text_lines(path))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        hint = " Is it JSON Lines? Name it .jsonl." if error.msg == "Extra data" else ""
        raise CorpusError(f"{path}, line {error.lineno}: not JSON: {error.msg}.{hint}") from error
    if not isinstance(rows, list):
        raise CorpusError(f"{path}: expected a list of rows, not {type(rows).__name__}")
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))


def _read_csv(path: Path) -> Iterator[tuple[str, Row]]:
    """Cells are text, lists are split by `|`, an empty cell is null."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader((line for _, line in _text_lines(path)), delimiter=delimiter, restkey="")
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if "" in row:
            raise CorpusError(f"{where}: more cells than the header has columns; quote cells that hold {delimiter!r}")
        yield where, {name: _csv_value(name, value) for name, value in row.items()}


def _csv_value(column: str, cell: str | None) -> str | list[str] | None:
    if not cell:
        return None
    return cell.split("|") if column in _LISTS else cell


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise CorpusError(f"{path}: not readable as Parquet: {error}") from error
    with file:
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


_READERS = {
    MANIFEST_SUFFIX: _read_jsonl,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}


def is_manifest(path: Path) -> bool:
    """Whether the suffix is one that `read_manifest` reads."""
    return path.suffix.lower() in _READERS


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(f"{path}, line {number}: not UTF-8. Save the file as UTF-8.") from error


def _to_utterance(
    row: Row, where: str, folder: Path, root: Path, split: str | None, folder_split: str | None
) -> Utterance:
    known: dict[str, Any] = {}
    taken = set()
    for column, names in COLUMNS.items():
        present = [name for name in names if name in row]
        if len(present) > 1:
            raise CorpusError(f"{where}: columns {present} all mean {column!r}; keep one")
        known[column] = row[present[0]] if present else None
        taken.update(present)
    _check_columns(row, taken, where)
    audio, key = _audio_and_key(known["audio"], folder, root, where)
    key = _text_cell(known["key"], "key", where) or key
    if "\0" in key or len(key.encode()) > MAX_KEY_BYTES:
        raise CorpusError(f"{where}: key {key[:60]!r}… holds NUL or is longer than {MAX_KEY_BYTES} bytes; shorten it")
    terms = _terms(known["terms"], where)
    if _is_true(row.get("is_no_term_chunk")) and terms:
        raise CorpusError(f"{where}: is_no_term_chunk is set, but terms are {list(terms)}; correct one of them")
    of_row = _text_cell(known["split"], "split", where)
    of_audio = split_of_path(Path(key).parent / "_")
    return Utterance(
        key=key,
        audio=audio,
        text=_text_cell(known["text"], "text", where) or "",
        terms=terms,
        term_spans=_spans(known["term_starts"], known["term_ends"], terms, where),
        speaker=_text_cell(known["speaker"], "speaker", where),
        language=_text_cell(known["language"], "language", where),
        split=split or (checked_split(of_row, where) if of_row else None) or folder_split or of_audio or "train",
        extra={name: value for name, value in row.items() if name not in taken},
        source=where,
    )


def _check_columns(row: Row, taken: set[str], where: str) -> None:
    """A missing column that another nearly spells is a misspelling, not a column to pass through."""
    for column in ("audio", "terms", "text"):
        if taken.intersection(COLUMNS[column]):
            continue
        for name in row:
            if name not in taken and difflib.SequenceMatcher(None, name.lower(), column).ratio() >= _SUGGEST_ABOVE:
                raise CorpusError(f"{where}: no column {column!r}, but one named {name!r}; rename it to {column!r}")
    if not taken.intersection(COLUMNS["audio"]):
        raise CorpusError(f"{where}: no column of audio; it has {sorted(row)}. Name one of them 'audio'.")


def _audio_and_key(value: Any, folder: Path, root: Path, where: str) -> tuple[Path | bytes, str]:
    path = value.get("path") if isinstance(value, Mapping) else value
    data = value.get("bytes") if isinstance(value, Mapping) else None
    if not isinstance(path, str) or not path:
        raise CorpusError(f"{where}: audio is {str(value)[:60]!r}; give the path of a file, relative to {folder}")
    return data or folder / path, default_key(folder / path, root)


def _text_cell(value: Any, column: str, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise CorpusError(f"{where}: {column} is {str(value)[:60]!r}; give a string or null")
    return value or None


def _terms(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise CorpusError(f"{where}: terms is {str(value)[:60]!r}; give a list of strings, [] for a clip without terms")
    for number, term in enumerate(value):
        if not isinstance(term, str) or not term.strip():
            raise CorpusError(f"{where}: terms[{number}] is {term!r}; give a non-blank string, or drop it")
        if len(term.split()) > MAX_TERM_WORDS:
            raise CorpusError(
                f"{where}: terms[{number}] has {len(term.split())} words ({term[:40]!r}…); the limit is "
                f"{MAX_TERM_WORDS}. Is this the text of the clip? Put it into 'text'."
            )
    return tuple(term.strip() for term in value)


def _spans(starts: Any, ends: Any, terms: tuple[str, ...], where: str) -> tuple[TermSpan | None, ...] | None:
    starts, ends = _seconds(starts, "term_starts", where), _seconds(ends, "term_ends", where)
    if starts is None and ends is None:
        return None
    if starts is None or ends is None or not len(starts) == len(ends) == len(terms):
        raise CorpusError(f"{where}: term_starts and term_ends must both have one number a term ({len(terms)} terms)")
    return tuple(_span(start, end, where) for start, end in zip(starts, ends, strict=True))


def _span(start: float | None, end: float | None, where: str) -> TermSpan | None:
    if start is None and end is None:
        return None
    if start is None or end is None or not 0 <= start < end or math.isinf(end):
        raise CorpusError(f"{where}: a term from {start} s to {end} s; give 0 ≤ start < end within the clip, or null")
    return start, end


def _seconds(value: Any, column: str, where: str) -> list[float | None] | None:
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise CorpusError(f"{where}: {column} is {str(value)[:60]!r}; give a list of seconds, or null")
    try:
        return [None if seconds in (None, "") else float(seconds) for seconds in value]
    except (TypeError, ValueError) as error:
        raise CorpusError(f"{where}: {column} is {value!r}; give numbers, in seconds") from error


def _is_true(value: Any) -> bool:
    return value is True or value == 1 or str(value).lower() == "true"
