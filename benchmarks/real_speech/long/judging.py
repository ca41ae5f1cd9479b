"""Answers to numbers: which of a system's answers are right, and what follows.

An answer is right where its middle lies in a place in which the term is said; of several for one term in one place the
surest counts and the others are left out. A term that is, by its letters, a run of words of the place's text without
being listed there was said all the same ("voice mail" where the text has "voicemail"): it is left out, neither right
nor wrong. All else is wrong, each time that it is answered.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.real_speech.long.recordings import Place, Recording, SearchedSet
from benchmarks.real_speech.spelling import letters_of
from qwen_term_retrieval.evaluation.ranking import TIE_TOLERANCE, bootstrap_interval, recall_at_k
from qwen_term_retrieval.evaluation.spotting import spotting_metrics
from qwen_term_retrieval.retrieval.calibration import JudgedMatches
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.text.spellings import spoken_spellings, term_id

NEVER_ANSWERED = 1 << 40  # the rank of a term said that is not among the answers
CUTOFF = 10
_LONGEST_UNLABELLED = 8


@dataclass(frozen=True)
class Judgement:
    """`answers` of all recordings; the rank of every term said among the wrong ones of its place; seconds by which
    start and end of right answers are off, where times are known.
    """

    answers: JudgedMatches
    ranks: NDArray[np.int64]
    span_errors: NDArray[np.float64]


def judge(recordings: Sequence[Recording], answers: Sequence[Sequence[TermMatch]]) -> Judgement:
    """Judge the answers to each recording, in any order."""
    scores: list[float] = []
    right: list[bool] = []
    ranks: list[int] = []
    span_errors: list[float] = []
    num_gold = 0
    for recording, matches in zip(recordings, answers, strict=True):
        by_place = _by_place(recording.places, matches)
        outside = by_place.pop(len(recording.places), [])
        scores += [match.confidence for match in outside]
        right += [False] * len(outside)
        for number, place in enumerate(recording.places):
            found, wrong = _sorted_out(place, by_place.get(number, []))
            scores += [match.confidence for match in (*found.values(), *wrong)]
            right += [True] * len(found) + [False] * len(wrong)
            num_gold += len(place.terms)
            ranks += _ranks(place, found, wrong)
            span_errors += _span_errors(place, found)
    judged = JudgedMatches(np.array(scores, np.float64), np.array(right, np.bool_), num_gold)
    return Judgement(judged, np.array(ranks, np.int64), np.array(span_errors, np.float64))


def _by_place(places: Sequence[Place], matches: Sequence[TermMatch]) -> dict[int, list[TermMatch]]:
    """Matches by the number of the place that their middle lies in; `len(places)` for those that lie in none."""
    ends = [place.end for place in places]
    by_place: dict[int, list[TermMatch]] = {}
    for match in matches:
        middle = (match.start + match.end) / 2
        number = bisect.bisect_left(ends, middle)
        if number < len(places) and middle < places[number].start:
            number = len(places)
        by_place.setdefault(number, []).append(match)
    return by_place


def _sorted_out(place: Place, matches: Sequence[TermMatch]) -> tuple[dict[int, TermMatch], list[TermMatch]]:
    """The surest match of each term said, by its id, and the wrong ones."""
    gold = {term_id(term) for term in place.terms}
    said = {letters_of(run) for run in spoken_spellings(place.text, max_words=_LONGEST_UNLABELLED)}
    found: dict[int, TermMatch] = {}
    for match in sorted(matches, key=lambda match: match.confidence, reverse=True):
        if match.term_id in gold:
            found.setdefault(match.term_id, match)
    return found, [match for match in matches if match.term_id not in gold and letters_of(match.term) not in said]


def _ranks(place: Place, found: dict[int, TermMatch], wrong: Sequence[TermMatch]) -> list[int]:
    """One plus the number of wrong terms at least as sure; the other terms said do not count."""
    surest: dict[int, float] = {}
    for match in wrong:
        surest[match.term_id] = max(match.confidence, surest.get(match.term_id, -np.inf))
    rivals = np.array(list(surest.values()))
    matches = [found.get(term_id(term)) for term in place.terms]
    return [
        NEVER_ANSWERED if match is None else 1 + int((rivals >= match.confidence - TIE_TOLERANCE).sum())
        for match in matches
    ]


def _span_errors(place: Place, found: dict[int, TermMatch]) -> list[float]:
    errors = []
    for term, (start, end) in place.spans.items():
        match = found.get(term_id(term))
        if match is not None:
            errors.append((abs(match.start - start) + abs(match.end - end)) / 2)
    return errors


def numbers(searched: SearchedSet, answers: Sequence[Sequence[TermMatch]], threshold: float | None) -> dict[str, float]:
    """`recall@10` with its 95 % bootstrap bounds over terms said, `span_error` in seconds where times are known, and
    what `spotting_metrics` gives.
    """
    judgement = judge(searched.recordings, answers)
    low, high = bootstrap_interval(judgement.ranks <= CUTOFF)
    recall = recall_at_k(judgement.ranks, CUTOFF)
    metrics = {f"recall@{CUTOFF}": recall, f"recall@{CUTOFF}_low": low, f"recall@{CUTOFF}_high": high}
    metrics |= spotting_metrics(judgement.answers, searched.minutes, threshold)
    if len(judgement.span_errors):
        metrics |= {"span_error": float(judgement.span_errors.mean()), "spans": len(judgement.span_errors)}
    return metrics
