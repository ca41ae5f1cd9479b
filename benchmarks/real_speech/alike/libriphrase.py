"""LibriPhrase from a local folder: phrases of one to four words, cut from LibriSpeech by its recipe.

The recipe (Shin et al. 2022; github.com/gusrud1103/LibriPhrase, MIT) cuts them from LibriSpeech (openslr.org/12,
CC BY 4.0) and writes `…_1word.csv` to `…_4word.csv` with the columns `anchor`, `anchor_spk`, `anchor_text`,
`anchor_dur`, `comparison`, `comparison_spk`, `comparison_text`, `comparison_dur`, `type`, `target` and `class`; the
paths in them are relative to the folder of the WAV files.

A row is one pair: the term is the anchor's text, the clip the comparison's audio. `target` is 1 where it is said;
else `type` ends with `easyneg` or `hardneg`. A pair that several rows name counts as often, as in what others report.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.real_speech.alike.pairs import Kind, ScoredClip
from qwen_term_retrieval.corpora.readers.csv_rows import csv_rows
from qwen_term_retrieval.errors import CorpusError

COLUMNS = ("anchor_text", "comparison", "comparison_spk", "type", "target")
_WHERE_TO_GET_IT = (
    "LibriPhrase is made from LibriSpeech (openslr.org/12, CC BY 4.0) by the recipe github.com/gusrud1103/LibriPhrase "
    "(MIT), which also links its official test set; put its CSV files and the folder of WAV files there"
)


def read_libriphrase(folder: Path) -> list[ScoredClip]:
    """The clips of all CSV files below a folder, each with the terms that it is paired with.

    Raises:
        FileNotFoundError: no CSV file or no recording of a row, naming it and where to get it.
        CorpusError: a row without a column, or of another kind, naming it.
    """
    tables = sorted(folder.rglob("*_[1-4]word.csv"))
    if not tables:
        raise FileNotFoundError(
            f"{folder} holds no file named like libriphrase_diffspk_all_1word.csv: {_WHERE_TO_GET_IT}"
        )
    terms_of: dict[tuple[str, str], list[tuple[str, Kind]]] = defaultdict(list)
    for where, row in (each for table in tables for each in csv_rows(table, frozenset())):
        clip, speaker, term, kind = _pair(row, where)
        _check_recording(folder / clip, where)
        terms_of[clip, speaker].append((term, kind))
    return list(_clips(folder, terms_of))


def _pair(row: Mapping[str, Any], where: str) -> tuple[str, str, str, Kind]:
    for column in COLUMNS:
        if not row.get(column):
            raise CorpusError(f"{where}: no {column!r}; the files of LibriPhrase have {', '.join(COLUMNS)}")
    target, kind = str(row["target"]), str(row["type"]).rpartition("_")[2]
    kinds: dict[tuple[str, str], Kind] = {
        ("1", "positive"): "own",
        ("0", "easyneg"): "easy",
        ("0", "hardneg"): "hard",
    }
    if (target, kind) not in kinds:
        raise CorpusError(
            f"{where}: target {target!r} of type {row['type']!r}; expected 1 and …_positive, or 0 and …neg"
        )
    return str(row["comparison"]).lstrip("/"), str(row["comparison_spk"]), str(row["anchor_text"]), kinds[target, kind]


def _check_recording(path: Path, where: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{where}: {path} does not exist. {_WHERE_TO_GET_IT}")


def _clips(folder: Path, terms_of: Mapping[tuple[str, str], Sequence[tuple[str, Kind]]]) -> Iterator[ScoredClip]:
    for (clip, speaker), pairs in terms_of.items():
        terms, kinds = zip(*pairs, strict=True)
        yield ScoredClip(clip, folder / clip, speaker, terms, kinds)
