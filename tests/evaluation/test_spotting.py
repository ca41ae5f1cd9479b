"""Numbers of spotting against counts by hand: five answers in three minutes, four terms said, one never answered."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_term_retrieval.evaluation.spotting import (
    accepted_answers,
    at_threshold,
    average_precision,
    recall_at_false_alarms,
    recall_at_precision,
    spotting_metrics,
)
from qwen_term_retrieval.retrieval.calibration import CalibrationError, JudgedMatches


def judged(*answers: tuple[float, bool], num_gold: int) -> JudgedMatches:
    scores, right = zip(*answers, strict=True) if answers else ((), ())
    return JudgedMatches(np.array(scores, np.float64), np.array(right, np.bool_), num_gold)


ANSWERS = judged((0.6, False), (0.9, True), (0.7, True), (0.8, False), (0.5, True), num_gold=4)


def test_average_precision_is_the_mean_precision_where_each_term_is_found():
    # Found first of one, second of three, third of five, and never.
    assert average_precision(ANSWERS) == pytest.approx((1 + 2 / 3 + 3 / 5 + 0) / 4)


def test_recall_at_a_precision_may_come_from_any_threshold_that_has_it():
    assert recall_at_precision(ANSWERS, 0.9) == 0.25
    assert recall_at_precision(ANSWERS, 0.6) == 0.75
    assert recall_at_precision(judged((0.9, False), (0.8, True), num_gold=1), 0.9) == 0


@pytest.mark.parametrize(("per_minute", "recall"), [(0, 0.25), (1 / 3, 0.5), (0.6, 0.5), (2 / 3, 0.75)])
def test_false_alarms_are_counted_a_minute_of_audio(per_minute, recall):
    assert recall_at_false_alarms(ANSWERS, per_minute, minutes=3) == recall


def test_equal_scores_are_accepted_together():
    tied = judged((0.9, False), (0.9, True), (0.9, True), num_gold=2)
    assert [values.tolist() for values in accepted_answers(tied)] == [[0.9], [2], [1]]
    assert average_precision(tied) == pytest.approx(2 / 3)
    assert recall_at_precision(tied, 0.7) == 0
    assert recall_at_false_alarms(tied, 0, minutes=1) == 0


def test_a_threshold_says_what_it_lets_through():
    assert at_threshold(ANSWERS, 0.7, minutes=2) == pytest.approx(
        {"threshold": 0.7, "precision": 2 / 3, "recall": 0.5, "f1": 4 / 7, "false_alarms_per_minute": 0.5}
    )
    assert at_threshold(ANSWERS, 0.95, minutes=2)["precision"] == 1


def test_all_numbers_together():
    metrics = spotting_metrics(ANSWERS, minutes=3, threshold=0.7)
    assert metrics["best_f1"] == pytest.approx(2 * 3 / (5 + 4))
    assert (metrics["best_f1_precision"], metrics["best_f1_recall"]) == (0.6, 0.75)
    assert metrics["recall@1_false_alarm_per_minute"] == 0.75
    assert metrics["recall@10_false_alarms_per_hour"] == 0.25
    assert metrics["recall@precision_0.9"] == 0.25
    assert metrics["precision"] == pytest.approx(2 / 3)
    assert "threshold" not in spotting_metrics(ANSWERS, minutes=3)


def test_a_system_that_never_answers_finds_nothing():
    metrics = spotting_metrics(judged(num_gold=3), minutes=1, threshold=0.5)
    assert metrics.pop("threshold") == 0.5
    assert metrics.pop("precision") == 1  # nothing it said was wrong
    assert set(metrics.values()) == {0}


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30), st.integers(1, 5))
def test_average_precision_does_not_depend_on_the_order_of_answers(answers, missed):
    num_gold = sum(right for _, right in answers) + missed
    forward, backward = judged(*answers, num_gold=num_gold), judged(*answers[::-1], num_gold=num_gold)
    assert average_precision(forward) == pytest.approx(average_precision(backward))
    assert 0 <= average_precision(forward) <= 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (judged((0.5, False), num_gold=0), "no term is said"),
        (judged((np.nan, False), num_gold=1), "not finite"),
        (judged((0.5, True), (0.4, True), num_gold=1), "2 right answers for 1 terms"),
    ],
)
def test_what_cannot_be_judged_is_refused(bad, reason):
    with pytest.raises(CalibrationError, match=reason):
        spotting_metrics(bad, minutes=1)


def test_rates_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="give a rate from 0 on and some audio"):
        recall_at_false_alarms(ANSWERS, 1, minutes=0)
    with pytest.raises(ValueError, match="precision must lie"):
        recall_at_precision(ANSWERS, 90)
