"""Contextual Earnings-22 from a local folder: 15 s clips of earnings calls, and the names and products said in them.

The folder is a copy of the dataset `argmaxinc/contextual-earnings22` of the Hugging Face Hub (Argmax 2026, arXiv
2604.07354; over Rev's Earnings-22, CC BY-SA 4.0): `data/test-00000-of-00001.parquet`, with the columns `audio`,
`file_id`, `audio_start`, `text`, `dictionary` (keywords said in the clip) and `keywords` (those of the whole call).

The glossary are the keywords of all calls. Calls have several speakers each; a call counts as one here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.real_speech.long.recordings import Place, Recording, SearchedSet
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE, clip_pcm
from qwen_term_retrieval.corpora.readers.parquet_dataset import find_tables
from qwen_term_retrieval.corpora.readers.parquet_rows import parquet_rows
from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.text.spellings import normalize_term

COLUMNS = ("audio", "file_id", "audio_start", "text", "dictionary", "keywords")
_WHERE_TO_GET_IT = (
    "copy the dataset argmaxinc/contextual-earnings22 (CC BY-SA 4.0) from the Hugging Face Hub there: "
    "`hf download argmaxinc/contextual-earnings22 --repo-type dataset --local-dir FOLDER`"
)


def earnings22_set(folder: Path) -> tuple[SearchedSet, list[str]]:
    """The clips of the test split, and the keywords of all calls.

    Raises:
        FileNotFoundError: the folder holds no table; says where to get it.
        CorpusError: a table without one of `COLUMNS`, naming it.
        BadAudioError: a clip that cannot be decoded.
    """
    try:
        tables = find_tables(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}: {_WHERE_TO_GET_IT}") from error
    clips: list[Recording] = []
    glossary: dict[str, str] = {}
    for split, table in tables:
        for where, row in parquet_rows(table) if split == "test" else ():
            clip = _clip(row, where)
            for term in (*clip.places[0].terms, *row["keywords"]):
                glossary.setdefault(normalize_term(term), term)
            clips.append(clip)
    if not clips:
        raise FileNotFoundError(f"{folder} holds no split test: {_WHERE_TO_GET_IT}")
    glossary.pop("", None)
    return SearchedSet("alone", "15 s of earnings calls; speakers counted as calls", clips), list(glossary.values())


def _clip(row: Mapping[str, Any], where: str) -> Recording:
    for column in COLUMNS:
        if row.get(column) is None:
            raise CorpusError(f"{where}: no column {column!r}. Contextual Earnings-22 has it: {_WHERE_TO_GET_IT}")
    key = f"{row['file_id']}-{float(row['audio_start']):09.2f}"
    pcm = clip_pcm(row["audio"]["bytes"], name=where)
    terms = tuple(dict.fromkeys(term for term in row["dictionary"] if normalize_term(term)))
    place = Place(0.0, len(pcm) / SAMPLING_RATE, row["text"], terms)
    return Recording(key, pcm, (place,), str(row["file_id"]))
