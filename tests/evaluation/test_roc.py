"""Area under the ROC curve and equal error rate, against counts by hand and the definitions written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_term_retrieval.evaluation.roc import area_under_roc, equal_error_rate

LABELLED = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({positive for _, positive in pairs}) == 2
)


@given(LABELLED)
def test_the_area_is_the_share_of_pairs_in_the_right_order_and_equals_count_half(pairs):
    right = [score for score, positive in pairs if positive]
    wrong = [score for score, positive in pairs if not positive]
    won = sum((high > low) + 0.5 * (high == low) for high in right for low in wrong)
    scores, positive = zip(*pairs, strict=True)
    assert area_under_roc(scores, positive) == pytest.approx(won / (len(right) * len(wrong)))


@given(LABELLED)
def test_the_error_rate_lies_between_those_of_the_thresholds_around_it(pairs):
    scores, positive = (np.array(column) for column in zip(*pairs, strict=True))
    thresholds = [7, *sorted(set(scores.tolist()), reverse=True)]
    accepted = [(scores[~positive] >= threshold).mean() for threshold in thresholds]
    refused = [(scores[positive] < threshold).mean() for threshold in thresholds]
    after = next(place for place in range(len(thresholds)) if accepted[place] >= refused[place])
    rate = equal_error_rate(scores, positive)
    assert max(accepted[after - 1], refused[after]) - 1e-12 <= rate
    assert rate <= min(accepted[after], refused[after - 1]) + 1e-12
    # It is the same error whichever of the two kinds is called the positive one.
    assert equal_error_rate(-scores, ~positive) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("scores", "positive", "area", "error"),
    [
        ([3, 2, 1, 0], [1, 1, 0, 0], 1.0, 0.0),
        ([3, 2, 1, 0], [0, 0, 1, 1], 0.0, 1.0),
        ([5, 5, 5, 5, 5], [1, 0, 0, 0, 0], 0.5, 0.5),
        # Accepting from 3 on refuses a third and accepts none; from 2 on it refuses none and accepts a half: the lines
        # (0, 1/3) to (1/2, 0) and the diagonal meet at 1/5.
        ([4, 3, 2, 2, 1], [1, 1, 1, 0, 0], 5.5 / 6, 0.2),
    ],
)
def test_cases_counted_by_hand(scores, positive, area, error):
    assert area_under_roc(scores, positive) == pytest.approx(area)
    assert equal_error_rate(scores, positive) == pytest.approx(error)


@pytest.mark.parametrize("measure", [area_under_roc, equal_error_rate])
@pytest.mark.parametrize(
    ("scores", "positive", "reason"),
    [
        ([1.0, 2.0], [True], "of one length"),
        ([1.0, np.nan], [True, False], "score 1 is not finite"),
        ([1.0, 2.0], [True, True], "2 of 2 pairs are positive: both kinds"),
        ([], [], "both kinds"),
    ],
)
def test_what_cannot_be_measured_is_refused(measure, scores, positive, reason):
    with pytest.raises(ValueError, match=reason):
        measure(scores, positive)
