"""Ranks of the right terms as `TermRetriever` answers: proposed by windows or sounds, and listened to again.

A right term that was not proposed stands last: nobody listened to it. Ties count against us.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.evaluation.ranked_pairs import rank_in_matches
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.indexing.embedding import TermEmbedder
from qwen_term_retrieval.retrieval.indexing.fingerprint import model_fingerprint
from qwen_term_retrieval.retrieval.looks.first_look import NUM_CANDIDATES
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.text.glossary import Term


def index_of(retriever: TermRetriever, terms: Sequence[str]) -> TermIndex:
    """All terms, each its own, even those too long for a glossary; its id is its row."""
    index = TermIndex(retriever.model.config.embedding_dim, fingerprint=model_fingerprint(retriever.model))
    alphabet = retriever.second_look.head.alphabet if retriever.second_look is not None else None
    embedder = TermEmbedder(retriever.model, alphabet)
    index.add([Term(term, row) for row, term in enumerate(terms)], embedder.vectors, embedder.speaker)
    return index


def answers_in_banks(
    retriever: TermRetriever,
    index: TermIndex,
    banks: Mapping[str, NDArray[np.int64]],
    clips: Sequence[NDArray[np.int16]],
) -> dict[str, list[list[TermMatch]]]:
    """What is found in each clip among the terms of each bank, whatever its confidence."""
    parts = parts_of(index, banks)
    found = retriever.nearest_in(list(parts.values()), list(clips), top_k=NUM_CANDIDATES, sampling_rate=SAMPLING_RATE)
    return dict(zip(banks, found, strict=True))


def parts_of(index: TermIndex, banks: Mapping[str, NDArray[np.int64]]) -> dict[str, TermIndex]:
    """An index of each bank."""
    # Not by place: of two rows that a glossary takes for one term, the index has the first.
    place_of = {term.term_id: place for place, term in enumerate(index.terms)}
    return {
        name: index.select([place_of[row] for row in rows.tolist() if row in place_of]) for name, rows in banks.items()
    }


def ranks_of(
    answers: Mapping[str, list[list[TermMatch]]], gold: Sequence[Sequence[int]], banks: Mapping[str, Any]
) -> dict[str, list[int]]:
    """The rank of the best-placed right term of each clip in each bank."""
    ranks: dict[str, list[int]] = {}
    for name, found in answers.items():
        in_bank = set(np.asarray(banks[name]).tolist())
        own = [[row for row in rows if row in in_bank] for rows in gold]
        neutral: list[list[int]] = [[] for _ in gold]
        pairs = rank_in_matches(found, own, neutral, len(in_bank)).ranks
        edges = np.cumsum([0, *(len(rows) for rows in own)])
        ranks[name] = [int(pairs[first:end].min()) for first, end in itertools.pairwise(edges.tolist())]
    return ranks


def believed(
    found: Sequence[Sequence[TermMatch]], gold: Sequence[Sequence[int]], chosen: NDArray[np.bool_]
) -> dict[str, dict[str, float]]:
    """Of answers of some clips at least so probable: how many, their precision, what they say it is, and recall."""
    pairs = [
        (match.confidence, match.term_id in rows)
        for matches, rows, counts in zip(found, gold, chosen, strict=True)
        if counts
        for match in matches
    ]
    probabilities, right = np.array([p for p, _ in pairs]), np.array([r for _, r in pairs], np.bool_)
    table = {}
    for threshold in (0.3, 0.5, 0.7, 0.9):
        told = probabilities >= threshold
        table[f"{threshold}"] = {
            "answers": int(told.sum()),
            "precision": round(float(right[told].mean()), 4) if told.any() else 1.0,
            "mean probability": round(float(probabilities[told].mean()), 4) if told.any() else 1.0,
            "recall": round(float(right[told].sum() / chosen.sum()), 4),
        }
    return table
