"""How well terms are spotted in speech that says other things too: one number for each way of choosing a threshold.

A clip holds no, one or many terms, and a search answers with as many as it likes. An answer is a (clip, term) pair
with a score; every answer of every clip goes into one ranking, so a system is judged on whether its scores mean the
same from clip to clip. What was said and not answered counts as missed at every threshold. Equal scores are accepted
together: no order among them can be known.

`qwen_term_retrieval.retrieval.calibration.judge_matches` makes the `JudgedMatches` that all functions here take.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwen_term_retrieval.retrieval.calibration import CalibrationError, JudgedMatches

MINUTES_OF_AN_HOUR = 60


class AcceptedAnswers(NamedTuple):
    """What accepting every score from `thresholds[i]` on lets through, best score first: int64 (M,) counts."""

    thresholds: NDArray[np.float64]
    num_right: NDArray[np.int64]
    num_wrong: NDArray[np.int64]


def accepted_answers(judged: JudgedMatches) -> AcceptedAnswers:
    """Right and wrong answers at each distinct score; empty where nothing was answered.

    Raises:
        CalibrationError: no term was said, a score that is not finite, more right answers than terms.
    """
    if judged.num_gold < 1:
        raise CalibrationError("no term is said in the clips: give clips in which some are, beside those without")
    if not np.isfinite(judged.scores).all():
        raise CalibrationError("a score is not finite")
    if judged.right.sum() > judged.num_gold:
        raise CalibrationError(
            f"{judged.right.sum()} right answers for {judged.num_gold} terms: some are counted twice"
        )
    order_M = np.argsort(-judged.scores, kind="stable")
    scores_M, right_M = judged.scores[order_M], judged.right[order_M]
    last_M = np.append(scores_M[1:] != scores_M[:-1], np.ones(min(1, len(scores_M)), np.bool_))
    return AcceptedAnswers(scores_M[last_M], np.cumsum(right_M)[last_M], np.cumsum(~right_M)[last_M])


def average_precision(judged: JudgedMatches) -> float:
    """Mean precision over the terms said, each at the threshold that just finds it; 0 for one that is never answered.

    >>> average_precision(JudgedMatches(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), num_gold=2))
    0.8333333333333333
    """
    accepted = accepted_answers(judged)
    newly_right = np.diff(accepted.num_right, prepend=0)
    precision = accepted.num_right / (accepted.num_right + accepted.num_wrong)
    return float((newly_right * precision).sum() / judged.num_gold)


def recall_at_precision(judged: JudgedMatches, precision: float) -> float:
    """The highest recall of a threshold whose precision is at least `precision`; 0 where none is.

    >>> recall_at_precision(JudgedMatches(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 4), 0.6)
    0.5
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision must lie in (0, 1], not {precision}")
    accepted = accepted_answers(judged)
    reached = accepted.num_right >= precision * (accepted.num_right + accepted.num_wrong)
    return float(accepted.num_right[reached].max(initial=0) / judged.num_gold)


def recall_at_false_alarms(judged: JudgedMatches, per_minute: float, minutes: float) -> float:
    """The highest recall of a threshold that lets at most `per_minute` wrong answers a minute through.

    Args:
        judged: the answers to all clips.
        per_minute: wrong answers allowed in a minute of audio; 1 / 6 is ten an hour.
        minutes: of audio in all clips together.
    """
    if minutes <= 0 or per_minute < 0:
        raise ValueError(
            f"{per_minute} false alarms a minute in {minutes} minutes: give a rate from 0 on and some audio"
        )
    accepted = accepted_answers(judged)
    # A rate such as 10 / 60 times a length such as 6 min must allow 1, whatever the last bit of the product.
    allowed = per_minute * minutes * (1 + 1e-9)
    return float(accepted.num_right[accepted.num_wrong <= allowed].max(initial=0) / judged.num_gold)


def at_threshold(judged: JudgedMatches, threshold: float, minutes: float) -> dict[str, float]:
    """`threshold`, `precision`, `recall`, `f1` and `false_alarms_per_minute` of accepting scores ≥ `threshold`."""
    accepted_M = judged.scores >= threshold
    num_told, num_right = int(accepted_M.sum()), int((judged.right & accepted_M).sum())
    return {
        "threshold": threshold,
        "precision": num_right / num_told if num_told else 1.0,
        "recall": num_right / judged.num_gold,
        "f1": 2 * num_right / (num_told + judged.num_gold),
        "false_alarms_per_minute": (num_told - num_right) / minutes,
    }


def spotting_metrics(judged: JudgedMatches, minutes: float, threshold: float | None = None) -> dict[str, float]:
    """All of the above.

    `average_precision`, `recall@precision_0.9`, `recall@1_false_alarm_per_minute`, `recall@10_false_alarms_per_hour`;
    `best_f1` with its `best_f1_precision` and `best_f1_recall`, which no threshold chosen beforehand can be above; with
    a threshold also what `at_threshold` gives.

    Raises:
        CalibrationError: as `accepted_answers`.
    """
    accepted = accepted_answers(judged)
    f1 = 2 * accepted.num_right / (accepted.num_right + accepted.num_wrong + judged.num_gold)
    best = int(f1.argmax()) if len(f1) else None
    num_right, num_wrong = (0, 0) if best is None else (int(accepted.num_right[best]), int(accepted.num_wrong[best]))
    metrics = {
        "average_precision": average_precision(judged),
        "recall@precision_0.9": recall_at_precision(judged, 0.9),
        "recall@1_false_alarm_per_minute": recall_at_false_alarms(judged, 1.0, minutes),
        "recall@10_false_alarms_per_hour": recall_at_false_alarms(judged, 10 / MINUTES_OF_AN_HOUR, minutes),
        "best_f1": 2 * num_right / (num_right + num_wrong + judged.num_gold),
        "best_f1_precision": num_right / (num_right + num_wrong) if num_right else 0.0,
        "best_f1_recall": num_right / judged.num_gold,
    }
    return metrics if threshold is None else metrics | at_threshold(judged, threshold, minutes)
