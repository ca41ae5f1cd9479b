"""Whether a score tells a clip's own term from another: area under the ROC curve and equal error rate.

Pairs of a clip and a term are scored one by one, as LibriPhrase (Shin et al. 2022) has it: no bank, no ranking. Equal
scores count half in the area and are accepted together in the error rates, so a score that is the same for every pair
has an area and an error rate of one half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def area_under_roc(scores: ArrayLike, positive: ArrayLike) -> float:
    """The share of (positive, negative) pairs in which the positive scores higher.

    Args:
        scores: (M,), higher for "the term is said".
        positive: bool (M,), whether it is.

    Raises:
        ValueError: shapes that differ, a score that is not finite, only positives or only negatives.

    >>> area_under_roc([0.9, 0.5, 0.5, 0.1], [True, True, False, False])
    0.875
    """
    scores_M, positive_M = _checked(scores, positive)
    values_U, place_M = np.unique(scores_M, return_inverse=True)
    positives_U = np.bincount(place_M[positive_M], minlength=len(values_U))
    negatives_U = np.bincount(place_M[~positive_M], minlength=len(values_U))
    below_U = np.cumsum(negatives_U) - negatives_U
    won = (positives_U * (below_U + negatives_U / 2)).sum()
    return float(won / (positives_U.sum() * negatives_U.sum()))


def equal_error_rate(scores: ArrayLike, positive: ArrayLike) -> float:
    """The rate at which as large a share of the negatives is accepted as of the positives is refused.

    Between two neighbouring thresholds both shares are taken to change along a line. Arguments and errors are those of
    `area_under_roc`.

    >>> equal_error_rate([0.9, 0.4, 0.5, 0.1], [True, True, False, False])
    0.5
    """
    scores_M, positive_M = _checked(scores, positive)
    order_M = np.argsort(-scores_M, kind="stable")
    scores_M, positive_M = scores_M[order_M], positive_M[order_M]
    last_M = np.append(scores_M[1:] != scores_M[:-1], True)
    accepted = np.concatenate([[0.0], np.cumsum(~positive_M)[last_M] / (~positive_M).sum()])
    refused = np.concatenate([[1.0], 1 - np.cumsum(positive_M)[last_M] / positive_M.sum()])
    after = int(np.argmax(accepted >= refused))
    gap_before, gap_after = (refused - accepted)[[after - 1, after]]
    part = gap_before / (gap_before - gap_after)
    return float(accepted[after - 1] + part * (accepted[after] - accepted[after - 1]))


def _checked(scores: ArrayLike, positive: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    scores_M, positive_M = np.asarray(scores, np.float64), np.asarray(positive, np.bool_)
    if scores_M.ndim != 1 or scores_M.shape != positive_M.shape:
        raise ValueError(f"scores {scores_M.shape} and positive {positive_M.shape} must be of one length")
    if not np.isfinite(scores_M).all():
        raise ValueError(f"score {int(np.argmin(np.isfinite(scores_M)))} is not finite")
    if not positive_M.any() or positive_M.all():
        raise ValueError(f"{positive_M.sum()} of {len(positive_M)} pairs are positive: both kinds are needed")
    return scores_M, positive_M
