"""From scores to "heard" or "not heard": a threshold chosen on a dev set.

A cosine says which term is nearer, not whether any term was said. `calibrate` searches dev clips whose terms are
known, judges every match right or wrong, and picks the threshold with the best F1, or the lowest one that reaches a
wanted precision. The threshold belongs to a model *and* to a size of glossary: among more terms, more wrong ones score
high by chance, so calibrate with a glossary as large as the one in use.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qwen_term_retrieval.text.spellings import normalize_term, spoken_spellings

if TYPE_CHECKING:
    from qwen_term_retrieval.retrieval.index import TermIndex
    from qwen_term_retrieval.retrieval.matches import TermMatch
    from qwen_term_retrieval.retrieval.retriever import TermRetriever


logger = logging.getLogger(__name__)


# Fewer clips, or fewer terms said in them, choose a threshold by chance.
FEW_CLIPS = 50
# A glossary that many times larger or smaller than the one a cosine was chosen with needs another threshold.
_MOST_RATIO = 5


class CalibrationError(ValueError):
    """The dev set cannot give a threshold: it is empty, one-sided, or the wanted precision is out of reach."""


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it gave on the dev set it was chosen on."""

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """One point for every distinct score, best score first: what accepting scores ≥ `thresholds[i]` gives.

    float64 (M,) each; `recall` never falls from one point to the next.
    """

    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    @property
    def f1(self) -> NDArray[np.float64]:
        return 2 * self.precision * self.recall / np.maximum(self.precision + self.recall, np.finfo(float).tiny)


@dataclass(frozen=True)
class JudgedMatches:
    """Matches against what was said: `scores` (their confidence) and `right` of each, and how many terms were said."""

    scores: NDArray[np.float64]
    right: NDArray[np.bool_]
    num_gold: int


def judge_matches(
    matches: Sequence[Sequence[TermMatch]], rows: Sequence[Mapping[str, Any]], index: TermIndex
) -> JudgedMatches:
    """Judge the matches of each clip against its row (`terms` and `text` of the row schema).

    A match is right where the row lists its term or an alias. A term that the row does not list but whose words stand
    in its text was said all the same: it is left out, neither right nor wrong. Listed terms that are not in the index
    cannot be found and do not count.
    """
    scores, right, num_gold = [], [], 0
    for clip_matches, row in zip(matches, rows, strict=True):
        gold = gold_ids(row, index)
        num_gold += len(gold)
        unlabelled = unlabelled_ids(row, index)
        for match in clip_matches:
            if match.term_id not in unlabelled:
                scores.append(match.confidence)
                right.append(match.term_id in gold)
    return JudgedMatches(np.array(scores, np.float64), np.array(right, np.bool_), num_gold)


def gold_ids(row: Mapping[str, Any], index: TermIndex) -> set[int]:
    """Ids of the row's terms that the index knows, in the row's `language` if it has one."""
    ids = (index.id_of(term, row.get("language")) for term in row["terms"])
    return {identity for identity in ids if identity is not None}


def count_known_terms(rows: Iterable[Mapping[str, Any]], index: TermIndex) -> tuple[int, int]:
    """How many of the terms said in the rows the index knows, and how many are said; warns of those not looked for."""
    known = [index.id_of(term, row.get("language")) is not None for row in rows for term in row["terms"]]
    if not all(known):
        logger.warning(
            "%d of the %d terms said in the clips are not in the glossary: they are not looked for, and their clips "
            "count as clips without them",
            known.count(False),
            len(known),
        )
    return known.count(True), len(known)


def unlabelled_ids(row: Mapping[str, Any], index: TermIndex) -> set[int]:
    """Ids of the terms whose words stand in the row's text, one after the other, without being listed.

    The language of a term does not count: one that is spelled as a term of the row, or as words of its text, is there.
    """
    language = row.get("language")
    spellings = {*spoken_spellings(row.get("text") or "", language)}
    spellings |= {normalize_term(term, language) for term in row["terms"]}
    return {identity for spelling in spellings for identity in index.ids_of(spelling)} - gold_ids(row, index)


def precision_recall_curve(scores: ArrayLike, right: ArrayLike, num_gold: int) -> PrecisionRecallCurve:
    """Precision and recall of "accept everything that scores at least t", for every score t.

    Args:
        scores: (M,), of all matches.
        right: bool (M,), whether each match is right.
        num_gold: terms there were to find, whether they are among the matches or not.

    Raises:
        CalibrationError: no match, no term to find, a score that is not finite, more right matches than terms.
    """
    scores_M, right_M = np.asarray(scores, np.float64), np.asarray(right, np.bool_)
    if scores_M.ndim != 1 or scores_M.shape != right_M.shape:
        raise CalibrationError(f"scores {scores_M.shape} and right {right_M.shape} must be of one length")
    if not len(scores_M) or num_gold < 1:
        raise CalibrationError(f"{len(scores_M)} matches and {num_gold} terms to find: the dev set shows nothing")
    if not np.isfinite(scores_M).all():
        raise CalibrationError("a score is not finite")
    if right_M.sum() > num_gold:
        raise CalibrationError(f"{right_M.sum()} right matches for {num_gold} terms: matches were counted twice")
    order_M = np.argsort(-scores_M, kind="stable")
    scores_M, num_right_M = scores_M[order_M], np.cumsum(right_M[order_M])
    # Equal scores are accepted together: only the last of each run is a point.
    last = np.flatnonzero(np.append(np.diff(scores_M) != 0, True))
    return PrecisionRecallCurve(scores_M[last], num_right_M[last] / (last + 1), num_right_M[last] / num_gold)


def choose_threshold(
    scores: ArrayLike, right: ArrayLike, num_gold: int, *, target_precision: float | None = None
) -> Calibration:
    """The threshold with the best F1 or, given `target_precision`, with the best recall at that precision.

    The threshold lies half-way between the last accepted score and the next one, so that noise in the last bits of a
    score changes nothing.

    Raises:
        CalibrationError: as `precision_recall_curve`; or no threshold reaches the precision (says what does best).
    """
    curve = precision_recall_curve(scores, right, num_gold)
    merit = curve.f1
    if target_precision is not None:
        if not 0 < target_precision <= 1:
            raise CalibrationError(f"target_precision must lie in (0, 1], not {target_precision}")
        merit = np.where(curve.precision >= target_precision, curve.recall, 0.0)
    best = int(np.argmax(merit))
    if merit[best] <= 0:
        reached = f"; the best is {curve.precision.max():.3f}" if curve.precision.max() > 0 else ""
        wanted = "a right match" if target_precision is None else f"precision {target_precision}"
        raise CalibrationError(f"no threshold on the dev set gives {wanted}{reached}")
    below = curve.thresholds[best + 1] if best + 1 < len(curve.thresholds) else curve.thresholds[best]
    return Calibration(
        threshold=float((curve.thresholds[best] + below) / 2),
        precision=float(curve.precision[best]),
        recall=float(curve.recall[best]),
        f1=float(curve.f1[best]),
    )


def calibrate(
    retriever: TermRetriever,
    rows: Sequence[Mapping[str, Any]],
    *,
    target_precision: float | None = None,
    top_k: int = 10,
    show_progress: bool = True,
) -> Calibration:
    """Choose a threshold on dev rows and give it to the model, whose `save_pretrained` then stores it.

    Args:
        retriever: with a glossary indexed, as large as the one in use.
        rows: of the row schema; no-term clips belong in it, they show what wrong matches score.
        target_precision: None for the best F1.
        top_k: matches judged in each clip.
        show_progress: see `TermRetriever.search_batch`.

    Raises:
        CalibrationError: the rows cannot give a threshold; their terms are none of the glossary's, say.
    """
    num_known, num_said = count_known_terms(rows, retriever.term_index)
    if num_said and not num_known:
        raise CalibrationError(
            f"the glossary holds none of the {num_said} terms said in the clips: there is nothing to find. Give the "
            "glossary of these clips, or clips in which its terms are said"
        )
    warn_of_few(len(rows), num_known)
    clips = [row["audio"] for row in rows]
    matches = retriever.nearest_batch(clips, top_k=top_k, show_progress=show_progress)
    judged = judge_matches(matches, rows, retriever.term_index)
    calibration = choose_threshold(judged.scores, judged.right, judged.num_gold, target_precision=target_precision)
    retriever.threshold = calibration.threshold
    retriever.model.config.threshold_terms = len(retriever.term_index)
    return calibration


def warn_of_few(num_clips: int, num_said: int) -> None:
    """Say that a threshold of few clips is little more than chance."""
    if min(num_clips, num_said) < FEW_CLIPS:
        logger.warning(
            "%d clips that say %d terms of the glossary: a threshold chosen on so few is little more than chance. "
            "Some %d are enough",
            num_clips,
            num_said,
            FEW_CLIPS,
        )


def fits_glossary(threshold_terms: int | None, num_terms: int) -> bool:
    """Whether a cosine's threshold was chosen among about as many terms as these, as far as it is known."""
    return threshold_terms is None or 1 / _MOST_RATIO <= num_terms / threshold_terms <= _MOST_RATIO
