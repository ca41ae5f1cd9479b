import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.retrieval.calibration import (
    CalibrationError,
    choose_threshold,
    judge_matches,
    precision_recall_curve,
)
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.text.glossary import Glossary

judged_matches = st.lists(st.tuples(st.integers(-10, 10).map(lambda n: n / 10), st.booleans()), min_size=1, max_size=60)


def split(judged):
    scores, right = zip(*judged, strict=True)
    return np.array(scores), np.array(right)


@settings(max_examples=100, deadline=None)
@given(judged=judged_matches, missed=st.integers(0, 5))
def test_every_point_of_the_curve_is_what_accepting_at_that_threshold_gives(judged, missed):
    scores, right = split(judged)
    num_gold = int(right.sum()) + missed + 1
    curve = precision_recall_curve(scores, right, num_gold)
    for threshold, precision, recall in zip(curve.thresholds, curve.precision, curve.recall, strict=True):
        accepted = scores >= threshold
        assert precision == pytest.approx(right[accepted].mean())
        assert recall == pytest.approx(right[accepted].sum() / num_gold)


@settings(max_examples=100, deadline=None)
@given(judged=judged_matches, missed=st.integers(0, 5))
def test_recall_never_falls_as_the_threshold_falls(judged, missed):
    scores, right = split(judged)
    curve = precision_recall_curve(scores, right, int(right.sum()) + missed + 1)
    assert (np.diff(curve.thresholds) < 0).all()
    assert (np.diff(curve.recall) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(judged=judged_matches.filter(lambda judged: any(right for _, right in judged)), missed=st.integers(0, 5))
def test_no_other_threshold_has_a_better_f1(judged, missed):
    scores, right = split(judged)
    num_gold = int(right.sum()) + missed
    chosen = choose_threshold(scores, right, num_gold)

    def f1(threshold):
        accepted = scores >= threshold
        return 2 * right[accepted].sum() / (accepted.sum() + num_gold)

    assert f1(chosen.threshold) == pytest.approx(chosen.f1)
    assert chosen.f1 == pytest.approx(max(f1(threshold) for threshold in scores))


def test_a_target_precision_takes_the_lowest_threshold_that_reaches_it():
    scores = [0.9, 0.8, 0.7, 0.6, 0.5]
    right = [True, True, False, True, False]
    chosen = choose_threshold(scores, right, num_gold=4, target_precision=0.75)
    assert chosen.threshold == pytest.approx(0.55)
    assert (chosen.precision, chosen.recall) == (0.75, 0.75)
    strict = choose_threshold(scores, right, num_gold=4, target_precision=1.0)
    assert strict.threshold == pytest.approx(0.75)
    assert strict.recall == 0.5


@pytest.mark.parametrize(
    ("scores", "right", "num_gold", "options", "message"),
    [
        ([], [], 3, {}, "0 matches"),
        ([0.5], [False], 0, {}, "0 terms to find"),
        ([0.5], [False], 1, {}, "no threshold on the dev set gives a right match"),
        ([0.9, 0.5], [False, True], 1, {"target_precision": 0.9}, r"precision 0\.9; the best is 0\.500"),
        ([0.9], [True], 1, {"target_precision": 1.5}, "must lie in"),
        ([np.nan], [True], 1, {}, "not finite"),
        ([0.9, 0.8], [True, True], 1, {}, "counted twice"),
        ([0.9, 0.8], [True], 1, {}, "one length"),
    ],
)
def test_a_dev_set_that_shows_nothing_is_refused(scores, right, num_gold, options, message):
    with pytest.raises(CalibrationError, match=message):
        choose_threshold(scores, right, num_gold, **options)


def make_index(entries):
    glossary = Glossary(entries)
    index = TermIndex(4, fingerprint="m")
    index.add(list(glossary), torch.ones(sum(len(term.spellings) for term in glossary), 4))
    return index


def match(index, spelling, score):
    return TermMatch(spelling, score, 0.0, 1.0, term_id=index.id_of(spelling))


def test_aliases_are_right_and_words_of_the_text_are_neither_right_nor_wrong():
    index = make_index([{"term": "heart attack", "aliases": ["myocardial infarction"]}, "attack", "stroke", "art"])
    rows = [
        {"terms": ["Myocardial infarction", "not in the glossary"], "text": "a heart attack, he said"},
        {"terms": [], "text": ""},
    ]
    matches = [
        [match(index, term, score) for term, score in [("heart attack", 0.9), ("attack", 0.8), ("art", 0.7)]],
        [match(index, "stroke", 0.6)],
    ]
    judged = judge_matches(matches, rows, index)
    assert judged.num_gold == 1
    assert judged.scores.tolist() == [0.9, 0.7, 0.6]
    assert judged.right.tolist() == [True, False, False]
