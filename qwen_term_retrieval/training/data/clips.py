"""The rows of a dataset as the losses see them: clips, queries into them, and ids of what was said.

`annotate_terms` adds four columns to a dataset of the row schema, once, cached by `datasets` on disk. A row's
`language`, where it has one, is that of its text and terms:

- `text_id`: identity of the chunk text (-1 where unknown);
- `same_text_ids`: the training terms that are the whole of the text, in any language;
- `term_ids`: identity of each term of the clip, aliases sharing one;
- `spelling_ids`: of each term as it was spelled, aliases apart: "AF" sounds unlike "atrial fibrillation", and a clip
  learns the one that was said;
- `spoken_ids`: every training term that stands in the chunk text as whole words, labelled or not, and in any language.

The last and `same_text_ids` name a term by all of its spellings. None of them is ever a negative for the clip:
"fibrillation" was said where "atrial fibrillation" was. In `terms` labels of one spelling become one string, that of
the glossary, so that a candidate is the same text on every rank.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
import xxhash

from qwen_term_retrieval.augmentation.visits import Augmentation
from qwen_term_retrieval.runs.checkpoints.resuming import rows_identity
from qwen_term_retrieval.runs.sampling import Visit
from qwen_term_retrieval.text.glossary import Glossary, Term, distinct_terms
from qwen_term_retrieval.text.pronouncing import Pronouncer, check_glossary
from qwen_term_retrieval.text.spellings import SpellingTable, normalize_term, spoken_spellings, term_id

logger = logging.getLogger(__name__)

NO_ID = -1
# By which rows are told from other rows, see `data_identity`.
_IDENTITY_COLUMNS = ("key", "duration", "language", "text", "terms", "term_starts", "term_ends")


def spoken_terms(rows: datasets.Dataset) -> list[Term]:
    """The terms of the rows, each spelling once in each language."""
    said = zip(_column(rows, "terms"), languages_of(rows), strict=True)
    return distinct_terms((term, language) for terms, language in said for term in terms)


def languages_of(rows: datasets.Dataset) -> list[str | None]:
    """The language of each row; None for all where the dataset does not say."""
    return _column(rows, "language") if "language" in rows.column_names else [None] * len(rows)


def _column(rows: datasets.Dataset, name: str) -> list[Any]:
    return rows.with_format("arrow")[name].to_pylist()


def training_glossary(rows: datasets.Dataset, glossary: Glossary | None = None) -> Glossary:
    """All terms of the rows, under the ids (and aliases) of `glossary` where it knows them, each once."""
    spoken = spoken_terms(rows)
    return glossary.joined_by(spoken) if glossary is not None else Glossary(spoken, source="the training rows")


def data_identity(rows: datasets.Dataset, glossary: Glossary) -> dict[str, str]:
    """What tells training data from other data: the clips in their order with their labels, and the glossary in its."""
    of_terms = xxhash.xxh3_64_hexdigest(repr(list(glossary)).encode())
    return {
        "clips": rows_identity(rows, _IDENTITY_COLUMNS),
        "terms": f"{len(glossary)} with digest {of_terms}",
    }


def check_languages(rows: datasets.Dataset, glossary: Glossary, pronouncer: Pronouncer) -> None:
    """See that the texts and terms of all rows, and the terms of the glossary, can be pronounced.

    Warns of terms that the rows speak in a language and the glossary lists without one.

    Raises:
        ValueError: a language has no phonemizer; names it, how many rows or terms are in it, the first, and the remedy.
    """
    languages = languages_of(rows)
    for language in dict.fromkeys(languages):
        if not pronouncer.reads(language):
            first = languages.index(language)
            raise ValueError(
                f"{languages.count(language)} rows are in {language!r}, the first has the key {rows[first]['key']!r}: "
                f"{pronouncer.unknown_language(language)}, or drop these rows with `rows.filter`."
            )
    check_glossary(glossary, pronouncer)
    foreign = [term for term in spoken_terms(rows) if pronouncer.has_own(term.language)]
    unnamed = [term for term in foreign if glossary.spellings.own(term.text, term.language) is None]
    unnamed = [term for term in unnamed if glossary.id_of(term.text, term.language) is not None]
    if unnamed:
        logger.warning(
            "%s: %d terms without a language are spoken in other languages, but said as the default says them; the "
            "first is %r in %r. Give the glossary its languages",
            glossary.source,
            len(unnamed),
            unnamed[0].text,
            unnamed[0].language,
        )


def annotate_terms(rows: datasets.Dataset, glossary: Glossary) -> datasets.Dataset:
    """Add `text_id`, `same_text_ids`, `term_ids`, `spelling_ids` and `spoken_ids` to rows of the row schema."""
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
            "same_text_ids": datasets.List(datasets.Value("int64")),
            "term_ids": datasets.List(datasets.Value("int64")),
            "spelling_ids": datasets.List(datasets.Value("int64")),
            "spoken_ids": datasets.List(datasets.Value("int64")),
        }
    )
    return rows.map(
        _annotate_batch,
        batched=True,
        input_columns=["text", "terms", *(["language"] if "language" in rows.column_names else [])],
        fn_kwargs={"labels": _Labels.of(rows, glossary)},
        features=features,
        desc="matching terms",
    )


@dataclass
class _Labels:
    """What the labels and words of some rows stand for.

    Attributes:
        spellings: spelling -> term id.
        written: spelling id of a label -> how it is written: as the glossary has it, or as it comes first in the
            alphabet.
        twins: term id -> ids of all spellings, of terms that have several.
    """

    spellings: SpellingTable
    written: dict[int, str]
    twins: dict[int, tuple[int, ...]]

    @classmethod
    def of(cls, rows: datasets.Dataset, glossary: Glossary) -> _Labels:
        written: dict[int, str] = {}
        for label in spoken_terms(rows):
            written.setdefault(label.term_id, label.text)
        for term in glossary:
            for identity, spelling in zip(term.spelling_ids, term.spellings, strict=True):
                if identity in written:
                    written[identity] = spelling
        twins = {term.term_id: term.spelling_ids for term in glossary if term.aliases}
        return cls(glossary.spellings, written, twins)

    def ids_of(self, normalized: str) -> list[int]:
        """Ids of every spelling of what a spelling stands for, in any language."""
        terms = self.spellings.every(normalized)
        return [identity for term in terms for identity in self.twins.get(term, (term,))]


def _annotate_batch(
    texts: list[str], terms: list[list[str]], languages: list[str | None] | None = None, *, labels: _Labels
) -> dict[str, list[Any]]:
    rows = [
        _annotate_row(text, spelled, language, labels)
        for text, spelled, language in zip(texts, terms, languages or [None] * len(texts), strict=True)
    ]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _annotate_row(text: str, terms: list[str], language: str | None, labels: _Labels) -> dict[str, Any]:
    spelling_ids = [term_id(term, language) for term in terms]
    said = {*spoken_spellings(text, language, max_words=labels.spellings.max_words)}
    said |= {normalize_term(term, language) for term in terms}
    return {
        "terms": [labels.written[identity] for identity in spelling_ids],
        "text_id": term_id(text, language) if text else NO_ID,
        "same_text_ids": labels.ids_of(normalize_term(text, language)),
        "term_ids": [
            labels.spellings.get(term, language) or identity for term, identity in zip(terms, spelling_ids, strict=True)
        ],
        "spelling_ids": spelling_ids,
        "spoken_ids": sorted({*spelling_ids, *(identity for spelling in said for identity in labels.ids_of(spelling))}),
    }


class TrainingClips(torch.utils.data.Dataset):
    """Annotated rows for a DataLoader: takes batches of visits, returns rows with each visit's clip, draw and step.

    Args:
        rows: the output of `annotate_terms`.
        frame_cache: cached frames of a frozen audio tower, in row order.
        augmentation: distorts each visit.
    """

    def __init__(self, rows: datasets.Dataset, frame_cache: Any = None, augmentation: Augmentation | None = None):
        self.rows = rows
        self.frame_cache = frame_cache
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


def other_spellings(clips: TrainingClips, glossary: Glossary) -> list[Term]:
    """How labels of the clips are spelled where it is not the spelling that the glossary shows, each once.

    An alias sounds otherwise than its term: what is said is near to how it was spelled.
    """
    shown = {term.term_id for term in glossary}
    others: dict[int, Term] = {}
    columns = [clips.rows.with_format("arrow")[name].to_pylist() for name in ("terms", "spelling_ids")]
    for texts, identities, language in zip(*columns, languages_of(clips.rows), strict=True):
        for text, identity in zip(texts, identities, strict=True):
            if identity not in shown:
                others.setdefault(identity, Term(text, identity, language=language))
    return list(others.values())


def said_in(row: dict[str, Any]) -> list[int]:
    """Ids of all that is said in a clip, labelled or not, and of the whole of its text: none is a wrong term for it."""
    return sorted({*row["term_ids"], *row["spoken_ids"], row["text_id"]})
