"""The rows of a dataset as the losses see them: clips, queries into them, and ids of what was said.

`annotate_terms` adds three columns to a dataset of the row schema, once, cached by `datasets` on disk:

- `text_id`: identity of the chunk text (-1 where unknown);
- `term_ids`: identity of each term of the clip, aliases sharing one;
- `spoken_ids`: every training term that stands in the chunk text as whole words, labelled or not. None of them is
  ever a negative for the clip: "fibrillation" was said where "atrial fibrillation" was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch

from qwen_term_retrieval.text.glossary import Glossary, normalize_term, spoken_spellings, term_id
from qwen_term_retrieval.training.augmentation import Augmentation
from qwen_term_retrieval.training.sampling import Visit

NO_ID = -1


def spoken_terms(rows: datasets.Dataset) -> list[str]:
    """The terms of the rows, each spelling once."""
    return sorted({term for terms in rows.with_format("arrow")["terms"].to_pylist() for term in terms})


def training_glossary(rows: datasets.Dataset, glossary: Glossary | None = None) -> Glossary:
    """All terms of the rows, under the ids (and aliases) of `glossary` where it knows them, each once."""
    spoken = spoken_terms(rows)
    return glossary.joined_by(spoken) if glossary is not None else Glossary(spoken, source="the training rows")


def annotate_terms(rows: datasets.Dataset, glossary: Glossary) -> datasets.Dataset:
    """Add `text_id`, `term_ids` and `spoken_ids` to rows that follow the row schema."""
    missing = {"audio", "key", "text", "terms", "duration"} - set(rows.column_names)
    if missing:
        raise ValueError(
            f"the dataset has no column {sorted(missing)}; it has {rows.column_names}. Pack the corpus with `qtr pack` "
            "or rename its columns to the row schema (audio, key, text, terms, duration)."
        )
    features = datasets.Features(
        {
            **rows.features,
            "text_id": datasets.Value("int64"),
            "term_ids": datasets.List(datasets.Value("int64")),
            "spoken_ids": datasets.List(datasets.Value("int64")),
        }
    )
    ids_by_spelling = {normalize_term(spelling): term.term_id for term in glossary for spelling in term.spellings}
    return rows.map(
        _annotate_batch,
        batched=True,
        input_columns=["text", "terms"],
        fn_kwargs={"ids_by_spelling": ids_by_spelling},
        features=features,
        desc="matching terms",
    )


def _annotate_batch(texts: list[str], terms: list[list[str]], ids_by_spelling: dict[str, int]) -> dict[str, list[Any]]:
    def identity(spelling: str) -> int:
        return ids_by_spelling.get(normalize_term(spelling)) or term_id(spelling)

    return {
        "text_id": [term_id(text) if text else NO_ID for text in texts],
        "term_ids": [[identity(term) for term in clip_terms] for clip_terms in terms],
        "spoken_ids": [_spoken_ids(text, ids_by_spelling) for text in texts],
    }


def _spoken_ids(text: str, ids_by_spelling: dict[str, int]) -> list[int]:
    return sorted({ids_by_spelling[spelling] for spelling in spoken_spellings(text) if spelling in ids_by_spelling})


class TrainingClips(torch.utils.data.Dataset):
    """Annotated rows for a DataLoader: takes batches of visits, returns rows with each visit's clip, draw and step.

    Args:
        rows: the output of `annotate_terms`.
        feature_cache: cached frames of a frozen audio tower, in row order.
        augmentation: distorts each visit.
    """

    def __init__(self, rows: datasets.Dataset, feature_cache: Any = None, augmentation: Augmentation | None = None):
        self.rows = rows
        self.feature_cache = feature_cache
        self.augmentation = augmentation
        self._columns = rows.remove_columns("audio")  # read by row number, in batches: see audio_source.py
        self.durations = np.asarray(rows.with_format("arrow")["duration"].to_numpy())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, visits: Sequence[Visit]) -> list[dict[str, Any]]:
        rows = self._columns.__getitems__([visit.clip for visit in visits])
        for row, visit in zip(rows, visits, strict=True):
            row |= visit._asdict()
        return rows if self.augmentation is None else [self.augmentation.visit(row) for row in rows]

    def __getitem__(self, visit: Visit) -> dict[str, Any]:
        return self.__getitems__([visit])[0]
