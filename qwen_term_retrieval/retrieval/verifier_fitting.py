"""A verifier for a model: its own searches of clips whose terms are known, judged and weighed.

Each clip is searched among banks of several sizes, so that one threshold serves them all, and each search counts a
second time without what it rightly found: so it would have been, had the term been missing from the bank. One bank more
is close to what is said: real glossaries hold terms that stand inside one another, and near twins, and a bank drawn by
chance holds hardly any.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_term_retrieval.errors import VerifierError
from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.retrieval.calibration import (
    Calibration,
    count_known_terms,
    gold_ids,
    unlabelled_ids,
    warn_of_few,
)
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.looks.second_look import Looked, SecondLook
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.text.glossary import Term, distinct_terms
from qwen_term_retrieval.text.spellings import MAX_TERM_WORDS, normalize_term, spoken_spellings
from qwen_term_retrieval.verification.evidence import FEATURES, Evidence
from qwen_term_retrieval.verification.fitting import JudgedCandidates, fit
from qwen_term_retrieval.verification.verifier import OperatingPoint, Verifier

logger = logging.getLogger(__name__)

_CLIPS_AT_ONCE = 64
_FEWEST_CLIPS = 20
_SMALLEST_BANK = 100
_TWINS = 4


def calibrate_verifier(
    retriever: TermRetriever,
    rows: Sequence[Mapping[str, Any]],
    *,
    target_precision: float | None = None,
    max_false_alarms_per_hour: float | None = None,
    bank_sizes: Iterable[int] | None = None,
    show_progress: bool = True,
) -> Calibration:
    """Fit how evidence becomes a probability, and choose the threshold; the model's config keeps both.

    Args:
        retriever: with a glossary indexed: what the rows say, and many terms that they do not.
        rows: of the row schema; no test clips. Clips without a term belong in it.
        target_precision, max_false_alarms_per_hour: what the threshold is to keep; without either, the best F1.
        bank_sizes: of the banks searched; powers of ten up to the glossary, by default.
        show_progress: draw a bar where there is a terminal.

    Raises:
        VerifierError: no phoneme head; too few rows, or rows that cannot fit a verifier; no threshold keeps what is
            wanted.
    """
    look = retriever.second_look or SecondLook(retriever.model)
    index = retriever.term_index
    look.pronounce(index)
    num_known, num_said = count_known_terms(rows, index)
    if len(rows) < _FEWEST_CLIPS or not num_known:
        raise VerifierError(
            f"{len(rows)} clips say {num_said} terms, of which the glossary holds {num_known}: a verifier needs at "
            f"least {_FEWEST_CLIPS} clips, and the glossary what is said in them"
        )
    warn_of_few(len(rows), num_known)
    if len(index) < 2 * num_known:
        logger.warning(
            "the glossary holds %d terms and %d of them are said: with so few wrong ones a verifier learns little of "
            "what not to believe. Add terms that are not said, near twins among them",
            len(index),
            num_known,
        )
    banks = [*_banks(index, rows, bank_sizes), close_bank(retriever, look, index, rows)]
    searches = judged_searches(retriever, look, rows, banks, show_progress=show_progress)
    verifier = fit(searches)
    threshold = (
        _best_f1(verifier).threshold
        if target_precision is None and max_false_alarms_per_hour is None
        else verifier.threshold_for(precision=target_precision, false_alarms_per_hour=max_false_alarms_per_hour)
    )
    retriever.use_verifier(replace(verifier, threshold=threshold))
    chosen = min(verifier.points, key=lambda point: abs(point.threshold - threshold))
    return Calibration(chosen.threshold, chosen.precision, chosen.recall, _f1(chosen))


def _f1(point: OperatingPoint) -> float:
    return 2 * point.precision * point.recall / max(point.precision + point.recall, 1e-9)


def _best_f1(verifier: Verifier) -> OperatingPoint:
    return max(verifier.points, key=_f1)


def _banks(index: TermIndex, rows: Sequence[Mapping[str, Any]], sizes: Iterable[int] | None) -> list[TermIndex]:
    """Banks of these sizes, what is said in each; a smaller one lies within a larger."""
    own = _places_of_said(index, rows)
    others = sorted({*range(len(index))}.difference(own))
    order = [*own, *np.random.default_rng(0).permutation(np.array(others, np.int64)).tolist()]
    if sizes is None:
        sizes = (10**power for power in range(2, 7))
    wanted = sorted({min(max(size, len(own), _SMALLEST_BANK), len(index)) for size in (*sizes, len(index))})
    return [index if size == len(index) else index.select(order[:size]) for size in wanted]


def _places_of_said(index: TermIndex, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    said = {identity for row in rows for identity in gold_ids(row, index)}
    return [place for place, term in enumerate(index.terms) if term.term_id in said]


def close_bank(
    retriever: TermRetriever, look: SecondLook, index: TermIndex, rows: Sequence[Mapping[str, Any]]
) -> TermIndex:
    """What is said in the rows, the few terms of the index that sound most alike, and parts and extensions of each."""
    own = _places_of_said(index, rows)
    first_row: dict[int, int] = {}
    for row, identity in enumerate(index.vector_term_ids):
        first_row.setdefault(identity, row)
    vectors_ND = index.vectors_ND[[first_row[index.terms[place].term_id] for place in own]]
    near = index.search(vectors_ND[:, None], min(_TWINS + 1, len(index))).terms
    bank = index.select(sorted({*own, *near.flatten().tolist()}))
    retriever.add_to(bank, _nested_terms([index.terms[place] for place in own]))
    look.pronounce(bank)
    return bank


def _nested_terms(terms: Sequence[Term]) -> list[Term]:
    """Terms that stand inside these, and terms in which these stand: with a word before, after, or another term."""
    rng = random.Random(0)
    by_language: dict[str | None, list[Term]] = {}
    for term in terms:
        by_language.setdefault(term.language, []).append(term)
    nested = []
    for language, own in by_language.items():
        words = [word for term in own for word in term.text.split()]
        for term in own:
            parts = term.text.split()
            texts = [" ".join(parts[:end]) for end in range(1, len(parts))]
            texts += [" ".join(parts[first:]) for first in range(1, len(parts))]
            texts += [f"{term.text} {rng.choice(words)}", f"{rng.choice(words)} {term.text}"]
            texts.append(f"{term.text} {rng.choice(own).text}")
            nested += [(text, language) for text in texts if len(text.split()) <= MAX_TERM_WORDS]
    return distinct_terms(nested)


def judged_searches(
    retriever: TermRetriever,
    look: SecondLook,
    rows: Sequence[Mapping[str, Any]],
    banks: Sequence[TermIndex],
    *,
    show_progress: bool = False,
) -> list[JudgedCandidates]:
    """What is proposed for clips in each of several banks that know how their terms sound, and whether it was said.

    A term that the text holds but the row does not name is neither right nor wrong: a part of a right term is marked as
    such, others are left out.
    """
    judged = [_Judged(bank) for bank in banks]
    with Progress(total=len(rows), desc="fitting the verifier", unit="clip", shown=show_progress) as bar:
        for first in range(0, len(rows), _CLIPS_AT_ONCE):
            group = [rows[row] for row in range(first, min(first + _CLIPS_AT_ONCE, len(rows)))]
            chunks = retriever.encoder.cut([row["audio"] for row in group], first=first)
            for positions, batch, windows in retriever.encoder.encode_chunks(chunks, 8, with_phonemes=True):
                for own in judged:
                    looked = look.look(windows, own.bank, batch, each_place=False)
                    own.add(looked, [group[position] for position in positions])
            bar.update(len(group))
    return [own.all() for own in judged]


@dataclass
class _Judged:
    """What the searches of one bank found, batch by batch. Each chunk counts as a clip."""

    bank: TermIndex
    evidence: list[Evidence] = field(default_factory=list)
    chunks: list[NDArray[np.int64]] = field(default_factory=list)
    right: list[NDArray[np.bool_]] = field(default_factory=list)
    parts: list[NDArray[np.bool_]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    num_chunks: int = 0
    gold: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, looked: Looked, rows: Sequence[Mapping[str, Any]]) -> None:
        gold = [gold_ids(row, self.bank) for row in rows]
        parts = [_ids_of_parts(row, self.bank) for row in rows]
        neutral = [unlabelled_ids(row, self.bank) - own for row, own in zip(rows, parts, strict=True)]
        ids_P = [self.bank.terms[place].term_id for place in looked.places_P.tolist()]
        chunk_of = looked.chunk_P.tolist()
        judged_P = np.array([i not in neutral[c] for c, i in zip(chunk_of, ids_P, strict=True)], np.bool_)
        right_P = np.array([i in gold[c] for c, i in zip(chunk_of, ids_P, strict=True)], np.bool_)
        parts_P = np.array([i in parts[c] for c, i in zip(chunk_of, ids_P, strict=True)], np.bool_)
        self.evidence.append(looked.evidence.select(judged_P))
        self.chunks.append(looked.chunk_P[judged_P] + self.num_chunks)
        self.right.append(right_P[judged_P])
        self.parts.append(parts_P[judged_P])
        self.words += self.bank.words(looked.places_P[judged_P])
        self.num_chunks += len(rows)
        self.gold += map(len, gold)
        self.seconds += sum(row["duration"] for row in rows)

    def all(self) -> JudgedCandidates:
        none = np.zeros(0, np.int64)
        nothing = Evidence(np.zeros((0, len(FEATURES)), np.float32), none, none)
        return JudgedCandidates(
            Evidence.joined([nothing, *self.evidence]),
            np.concatenate([none, *self.chunks]),
            np.concatenate([none.astype(np.bool_), *self.right]),
            np.concatenate([none.astype(np.bool_), *self.parts]),
            self.words,
            num_clips=self.num_chunks,
            num_terms=len(self.bank),
            gold_C=np.array(self.gold, np.int64),
            seconds=self.seconds,
        )


def _ids_of_parts(row: Mapping[str, Any], index: TermIndex) -> set[int]:
    """Ids of the terms whose words are some of a right term's, one after the other."""
    language, gold = row.get("language"), gold_ids(row, index)
    parts: set[int] = set()
    for term in row["terms"]:
        if index.id_of(term, language) in gold:
            inside = set(spoken_spellings(term, language)) - {normalize_term(term, language), normalize_term(term)}
            parts |= {identity for spelling in inside for identity in index.ids_of(spelling)}
    return parts - gold
