"""The one place where a row of a corpus, whatever its layout, is checked and becomes an `Utterance`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from qwen_term_retrieval.audio.sources import Audio, FileSlice, is_url
from qwen_term_retrieval.corpora.locations import Location, audio_below, path_of
from qwen_term_retrieval.corpora.utterance import (
    KEY_RULES,
    TermSpan,
    Utterance,
    checked_split,
    default_key,
    split_of_path,
)
from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.text.spellings import MAX_TERM_WORDS

Row = Mapping[str, Any]

COLUMNS: dict[str, tuple[str, ...]] = {
    "audio": ("audio", "file_name", "audio_filepath", "term_chunk_audio"),
    "key": ("key",),
    "text": ("text", "transcription", "transcript", "sentence", "term_chunk_text"),
    "terms": ("terms", "term_chunk_audio_ground_truth_terms"),
    "term_starts": ("term_starts",),
    "term_ends": ("term_ends",),
    "clip_start": ("clip_start",),
    "clip_end": ("clip_end",),
    "clip_channel": ("clip_channel",),
    "speaker": ("speaker",),
    "language": ("language",),
    "split": ("split",),
    # Measured when packing; what the manifest says of it is not kept.
    "duration": ("duration",),
}
MAX_KEY_BYTES = 1024
MAX_SECONDS = 1e7
_SUGGEST_ABOVE = 0.8


@dataclass(frozen=True)
class RowRules:
    """What holds for all rows of a corpus: its root, and how keys, splits and columns are read.

    `columns` names columns that have other names than ours: `{"text": "raw_text"}`; `allow_pickle` is for indexes of
    legacy shards.
    """

    root: Location
    split: str | None = None
    key_rule: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        for column in self.columns:
            if column not in COLUMNS:
                raise CorpusError(f"columns: {column!r} is none of {', '.join(COLUMNS)}")
        if self.key_rule not in KEY_RULES:
            raise CorpusError(f"unknown key rule {self.key_rule!r}; known are {', '.join(KEY_RULES)}")

    @cached_property
    def root_path(self) -> str:
        """Path of the root within its file system; "" for the current folder, which no path begins with."""
        return "" if (path := str(path_of(self.root))) == "." else path

    def list_columns(self) -> set[str]:
        """Names of the columns whose cells are lists."""
        ours = (
            (self.columns[column],) if column in self.columns else COLUMNS[column]
            for column in ("terms", "term_starts", "term_ends")
        )
        return {name for names in ours for name in names}


def to_utterance(
    row: Row, where: str, folder: Location, rules: RowRules, *, folder_split: str | None = None
) -> Utterance:
    """Check a row and make an utterance of it.

    Args:
        row: cells by column, the columns named as in `COLUMNS` or in `rules.columns`; others become `extra`. The cell
            `audio` is a path, URL, `FileSlice`, encoded bytes, an array with `sampling_rate`, or `{bytes, path}`.
        where: file and row, for messages.
        folder: what relative audio paths are relative to.
        rules: of the corpus.
        folder_split: split named by the place of the manifest.

    Raises:
        CorpusError: naming the row, the cell and the remedy.
    """
    if not isinstance(row, Mapping):
        raise CorpusError(f"{where}: expected an object with the column 'audio', not {str(row)[:60]!r}")
    names = _column_names(row, rules, where)
    cells = {column: row[name] if name else None for column, name in names.items()}
    given_key = _text_cell(cells["key"], "key", where)
    audio, path, sampling_rate = _audio(cells["audio"], folder, where)
    if not given_key and not path:
        raise CorpusError(f"{where}: the audio has no path that its key could follow from; give a column 'key'")
    start, end = _clip_bounds(cells["clip_start"], cells["clip_end"], where)
    channel = _channel(cells["clip_channel"], where)
    key = given_key or key_of_path(path or "", rules.root_path, rules, where) + _part_of_recording(start, end, channel)
    _check_key(key, where)
    terms = _terms(cells["terms"], where)
    if _is_true(row.get("is_no_term_chunk")) and terms:
        raise CorpusError(f"{where}: is_no_term_chunk is set, but terms are {list(terms)}; correct one of them")
    of_row = _text_cell(cells["split"], "split", where)
    of_audio = _split_of_folder(key.rpartition("/")[0])
    taken = names.values()
    return Utterance(
        key=key,
        audio=audio,
        text=_text_cell(cells["text"], "text", where) or "",
        terms=terms,
        term_spans=_spans(cells["term_starts"], cells["term_ends"], terms, where),
        speaker=_text_cell(cells["speaker"], "speaker", where),
        language=_text_cell(cells["language"], "language", where),
        split=rules.split or (checked_split(of_row, where) if of_row else None) or folder_split or of_audio or "train",
        sampling_rate=sampling_rate,
        start=start,
        end=end,
        channel=channel,
        extra={name: value for name, value in row.items() if name not in taken},
        source=where,
    )


def number_cell(value: Any, column: str, where: str) -> float | None:
    """A number, or None for an empty cell.

    Raises:
        CorpusError: anything else, NaN and infinity among it.
    """
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise CorpusError(f"{where}: {column} is {str(value)[:60]!r}; give a number")
    return number


def key_of_path(path: str, root: str, rules: RowRules, where: str) -> str:
    """`default_key` by the corpus' rule.

    Raises:
        CorpusError: the rule does not fit; the message starts with `where`.
    """
    try:
        return default_key(path, root, rules.key_rule)
    except CorpusError as error:
        raise CorpusError(f"{where}: {error}") from error


def _clip_bounds(start: Any, end: Any, where: str) -> tuple[float, float | None]:
    first, last = number_cell(start, "clip_start", where) or 0.0, number_cell(end, "clip_end", where)
    if not 0 <= first < (MAX_SECONDS if last is None else last) <= MAX_SECONDS:
        raise CorpusError(f"{where}: a clip from {first} s to {last} s; give 0 ≤ start < end, in seconds")
    return first, last


def _channel(value: Any, where: str) -> int | None:
    channel = number_cell(value, "clip_channel", where)
    if channel is not None and (channel < 0 or channel != int(channel)):
        raise CorpusError(f"{where}: clip_channel is {value!r}; give a number from 0 on, or null for the mean of all")
    return None if channel is None else int(channel)


def _part_of_recording(start: float, end: float | None, channel: int | None) -> str:
    """What tells the keys of one recording's clips apart: milliseconds and channel, `-00012300-00016400-c1`."""
    part = "" if channel is None else f"-c{channel}"
    if not start and end is None:
        return part
    return f"-{round(start * 1000):08d}-" + ("end" if end is None else f"{round(end * 1000):08d}") + part


def _column_names(row: Row, rules: RowRules, where: str) -> dict[str, str | None]:
    try:
        return _names_of_columns(tuple(row), tuple(sorted(rules.columns.items())))
    except ValueError as error:
        raise CorpusError(f"{where}: {error}") from error


@lru_cache(maxsize=256)
def _names_of_columns(names: tuple[str, ...], renamed: tuple[tuple[str, str], ...]) -> dict[str, str | None]:
    """Which of a row's names stands for each of our columns; found once for all rows of the same names."""
    known: dict[str, str | None] = {}
    for column, ours in COLUMNS.items():
        theirs = dict(renamed).get(column)
        if theirs is not None and theirs not in names:
            raise ValueError(f"no column {theirs!r}; it has {sorted(map(str, names))}")
        present = [theirs] if theirs is not None else [name for name in ours if name in names]
        if len(present) > 1:
            raise ValueError(f"columns {present} all mean {column!r}; keep one")
        known[column] = present[0] if present else None
    # A missing column that another nearly spells is a misspelling, not a column to pass through.
    for column in ("audio", "terms", "text"):
        for name in names if known[column] is None else ():
            likeness = difflib.SequenceMatcher(None, str(name).lower(), column).ratio()
            if name not in known.values() and likeness >= _SUGGEST_ABOVE:
                raise ValueError(f"no column {column!r}, but one named {name!r}; rename it to {column!r}")
    if known["audio"] is None:
        raise ValueError(f"no column of audio; it has {sorted(map(str, names))}. Name one of them 'audio'.")
    return known


def _audio(value: Any, folder: Location, where: str) -> tuple[Audio, str | None, int | None]:
    """What holds the samples, the path that a key may follow from, and the rate of an array in Hz."""
    if isinstance(value, bytes) and value:
        return value, None, None
    if isinstance(value, FileSlice):
        return value, None, None
    if isinstance(value, Mapping) and value.get("array") is not None:
        return _array(value["array"], where), _path_cell(value.get("path")), _rate(value.get("sampling_rate"), where)
    if isinstance(value, Mapping) and value.get("bytes"):
        return value["bytes"], _path_cell(value.get("path")), None
    path = value.get("path") if isinstance(value, Mapping) else value
    if isinstance(path, Path):
        return path, path.as_posix(), None
    if not isinstance(path, str) or not path.strip("/.") or "\0" in path:
        raise CorpusError(f"{where}: audio is {str(value)[:60]!r}; give the path of a file, relative to {folder}")
    audio = audio_below(folder, path)
    return audio, str(path_of(audio)) if is_url(audio) else audio, None


def _array(value: Any, where: str) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.asarray(value, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise CorpusError(f"{where}: audio has an array that is none ({error}); give a list of floats") from error


def _rate(value: Any, where: str) -> int:
    rate = number_cell(value, "sampling_rate", where)
    if rate is None or rate < 1 or rate != int(rate):
        raise CorpusError(f"{where}: sampling_rate is {str(value)[:60]!r}; give the rate of the array in Hz")
    return int(rate)


def _path_cell(path: Any) -> str | None:
    """The name beside embedded audio."""
    return path if isinstance(path, str) and path.strip("/.") else None


@lru_cache(maxsize=1024)
def _split_of_folder(folder: str) -> str | None:
    return split_of_path(PurePosixPath(folder, "_"))


def _check_key(key: str, where: str) -> None:
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise CorpusError(f"{where}: key {key[:60]!r} is not UTF-8; rename the file, or give a column 'key'") from error
    if "\0" in key or not 0 < size <= MAX_KEY_BYTES:
        raise CorpusError(f"{where}: key {key[:60]!r}… holds NUL or is longer than {MAX_KEY_BYTES} bytes; shorten it")


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
    except (TypeError, ValueError, OverflowError) as error:
        raise CorpusError(f"{where}: {column} is {str(value)[:60]}; give numbers, in seconds") from error


def _is_true(value: Any) -> bool:
    return value is True or value == 1 or str(value).lower() == "true"
