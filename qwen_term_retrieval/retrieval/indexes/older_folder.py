"""Index folders of version 1, as releases before parts wrote them: `vectors.npy`, `terms.parquet` and `sounds/`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyarrow import parquet

from qwen_term_retrieval.retrieval.indexes.parts import Part
from qwen_term_retrieval.retrieval.indexes.sounds import PartSounds
from qwen_term_retrieval.retrieval.indexes.state import IndexState
from qwen_term_retrieval.retrieval.indexes.terms import TermTable
from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.verification.sound_index import SoundIndex


def open_first_version(folder: Path, meta: Mapping[str, Any]) -> IndexState:
    """Its terms as one part, the vectors mapped from their file."""
    terms = group_terms(parquet.read_table(folder / "terms.parquet").to_pydict())
    vectors_RD = torch.from_numpy(np.load(folder / "vectors.npy", mmap_mode="c"))
    sounds = None
    if meta.get("num_sounds") is not None:
        opened = SoundIndex.open(folder / "sounds", meta["num_sounds"])
        sounds = PartSounds.of(opened.bank)
    if not terms:
        return IndexState()
    table = TermTable.of(terms, num_rows_T=np.array([len(term.spellings) for term in terms], np.int32))
    return IndexState((Part(table, vectors_RD, sounds=sounds),), (None,))


def group_terms(columns: dict[str, list[Any]]) -> list[Term]:
    """Rows of `terms.parquet` to terms; a term's first row is the spelling to show, the others its aliases."""
    spellings: list[list[str]] = []
    of_term: list[tuple[int, str | None]] = []
    languages = columns.get("language") or [None] * len(columns["term"])  # the earliest indexes have no such column
    rows = zip(columns["spelling"], columns["term"], columns["term_id"], languages, strict=True)
    for spelling, owner, identity, language in rows:
        if owner == len(spellings):
            spellings.append([])
            of_term.append((identity, language))
        spellings[owner].append(spelling)
    return [
        Term(text, identity, tuple(aliases), language)
        for (text, *aliases), (identity, language) in zip(spellings, of_term, strict=True)
    ]
