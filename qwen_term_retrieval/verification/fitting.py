"""Fit a `Verifier` on candidates of which it is known whether they were said.

Three kinds of clips teach it what not to believe: those without a term, those in which a wrong term stands beside the
right one, and, made of the latter, those whose own term is missing from the bank while its near twins are in it. A
verifier that never saw the last believes the twin.

Shapes: P candidates, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_term_retrieval.errors import VerifierError
from qwen_term_retrieval.verification.evidence import FEATURES, Evidence
from qwen_term_retrieval.verification.verifier import BELIEFS, OperatingPoint, Verifier, belief_inputs, margins

# A prior on the weights of standardised features, as strong whatever the number of clips: a few dozen would else give a
# feature that never fails an endless weight, and a share of each clip's loss would hold thousands of clips as tight.
_PRIOR = 0.025
_MOST_POINTS = 200
_STRONGEST = 3


@dataclass(frozen=True, eq=False)
class JudgedCandidates:
    """Candidates of some clips, searched among `num_terms`, and whether they were said.

    clips_P: int64, numbered from 0 to `num_clips` - 1, whether they have candidates or not.
    right_P: bool. Candidates that are neither right nor wrong are left out, but for `parts_P`.
    parts_P: bool, a part of a right term ("call" of "call forwarding"): it was said, and is a weaker answer than the
        whole. It is ranked, a rival of others, and no wrong answer.
    words_P: the words of each candidate, see `margins`.
    gold_C: int64, how many terms there were to find in each clip.
    seconds: of the clips together.
    """

    evidence: Evidence
    clips_P: NDArray[np.int64]
    right_P: NDArray[np.bool_]
    parts_P: NDArray[np.bool_]
    words_P: Sequence[str]
    num_clips: int
    num_terms: int
    gold_C: NDArray[np.int64]
    seconds: float

    @property
    def num_gold(self) -> int:
        return int(self.gold_C.sum())

    @property
    def shares(self) -> NDArray[np.float64]:
        """What a right candidate counts, the terms of a clip together as much as the one of another; 1 for others."""
        return np.where(self.right_P, 1 / self.gold_C.clip(min=1)[self.clips_P], 1.0)

    @classmethod
    def joined(cls, parts: Sequence[JudgedCandidates]) -> JudgedCandidates:
        """Searches of several groups of clips, each among as many terms, as one."""
        offsets = np.cumsum([0, *(part.num_clips for part in parts)])[:-1]
        return cls(
            Evidence.joined([part.evidence for part in parts]),
            np.concatenate([part.clips_P + offset for part, offset in zip(parts, offsets, strict=True)]),
            np.concatenate([part.right_P for part in parts]),
            np.concatenate([part.parts_P for part in parts]),
            [words for part in parts for words in part.words_P],
            num_clips=sum(part.num_clips for part in parts),
            num_terms=parts[0].num_terms,
            gold_C=np.concatenate([part.gold_C for part in parts]),
            seconds=sum(part.seconds for part in parts),
        )

    def without_right(self) -> JudgedCandidates:
        """The same clips, searched among terms that do not hold what they say."""
        wrong_P = ~self.right_P
        return JudgedCandidates(
            self.evidence.select(wrong_P),
            self.clips_P[wrong_P],
            self.right_P[wrong_P],
            self.parts_P[wrong_P],
            [self.words_P[place] for place in np.flatnonzero(wrong_P).tolist()],
            self.num_clips,
            self.num_terms,
            np.zeros_like(self.gold_C),
            self.seconds,
        )


def fit(searches: Sequence[JudgedCandidates]) -> Verifier:
    """A verifier of what these searches found, best among banks of many sizes.

    Raises:
        VerifierError: no clip holds its term among its candidates, none is without a term, or no wrong term is a
            candidate; says what to add.
    """
    _check(searches)
    strengths = _fit_strengths(searches)
    ranked = Verifier(dict(zip(FEATURES, strengths.tolist(), strict=True)), dict.fromkeys(BELIEFS, 0.0))
    inputs, right, weights = [], [], []
    # Each bank counts alike, in it what was said as much as what was missing, and a clip as much as another: sentences
    # all of whose words are terms would else say that nearly all that is proposed for a sentence was said.
    for search in searches:
        for judged in (search, search.without_right()):
            inputs_PI = _belief_rows(ranked, judged)
            near_P = judged.right_P | _strongest_wrong(inputs_PI[:, 0], judged)
            inputs.append(inputs_PI[near_P])
            right.append(judged.right_P[near_P])
            weights.append(judged.shares[near_P] / max(search.num_clips, 1))
    num_clips = sum(search.num_clips for search in searches)
    beliefs = _fit_logistic(np.concatenate(inputs), np.concatenate(right), np.concatenate(weights), num_clips)
    fitted = Verifier(ranked.strengths, dict(zip(BELIEFS, beliefs.tolist(), strict=True)))
    points = _operating_points(fitted, searches)
    return Verifier(fitted.strengths, fitted.beliefs, points, fitted.threshold)


def _check(searches: Sequence[JudgedCandidates]) -> None:
    if not any(search.right_P.any() for search in searches):
        raise VerifierError(
            "none of the clips has its own term among the candidates: give the glossary of these clips, or clips in "
            "which its terms are said"
        )
    if not any((~search.right_P).any() for search in searches):
        raise VerifierError(
            "no wrong term is a candidate of any clip: search among more terms (`--distractors`), near twins of those "
            "that are said among them"
        )


def _belief_rows(verifier: Verifier, judged: JudgedCandidates) -> NDArray[np.float64]:
    strengths_P = verifier.strengths_of(judged.evidence.features_PF)
    return belief_inputs(strengths_P, _margins_of(strengths_P, judged), judged.num_terms)


def _margins_of(strengths_P: NDArray[np.float64], judged: JudgedCandidates) -> NDArray[np.float64]:
    evidence = judged.evidence
    return margins(strengths_P, judged.clips_P, evidence.starts_P, evidence.ends_P, judged.words_P)


def _strongest_wrong(strengths_P: NDArray[np.float64], judged: JudgedCandidates) -> NDArray[np.bool_]:
    """Which are among the few strongest wrong ones of their clip: those far below would bend the line they lie on."""
    wrong_P = ~judged.right_P & ~judged.parts_P
    order_P = np.lexsort((-strengths_P, ~wrong_P, judged.clips_P))
    ordered_clips_P = judged.clips_P[order_P]
    place_P = np.arange(len(order_P)) - np.searchsorted(ordered_clips_P, ordered_clips_P)
    near_P = np.zeros(len(order_P), np.bool_)
    near_P[order_P[place_P < _STRONGEST]] = True
    return near_P & wrong_P


def _fit_strengths(searches: Sequence[JudgedCandidates]) -> NDArray[np.float64]:
    """Weights with which the right candidates of a clip are likeliest among all of them."""
    features, groups, right, first = [], [], [], 0
    for search in searches:
        has_right = np.zeros(search.num_clips, np.bool_)
        has_right[search.clips_P[search.right_P]] = True
        chosen_P = has_right[search.clips_P]
        features.append(search.evidence.features_PF[chosen_P])
        groups.append(search.clips_P[chosen_P] + first)
        right.append(search.right_P[chosen_P])
        first += search.num_clips
    features_PF = torch.from_numpy(np.concatenate(features)).double()
    _, group_P = np.unique(np.concatenate(groups), return_inverse=True)
    group, right_P = torch.from_numpy(group_P), torch.from_numpy(np.concatenate(right))
    scale_F = features_PF.std(dim=0).clamp(min=1e-6)
    scaled_PF = features_PF / scale_F

    def loss(weights_F: torch.Tensor) -> torch.Tensor:
        strengths_P = scaled_PF @ weights_F
        total = _log_sum_exp_by(strengths_P, group)
        of_right = _log_sum_exp_by(strengths_P[right_P], group[right_P], len(total))
        return (total - of_right).mean()

    return (_minimum(loss, len(scale_F), int(group.max()) + 1) / scale_F).numpy()


def _log_sum_exp_by(values_P: torch.Tensor, group_P: torch.Tensor, num_groups: int | None = None) -> torch.Tensor:
    num_groups = int(group_P.max()) + 1 if num_groups is None else num_groups
    most = values_P.new_full((num_groups,), -torch.inf).scatter_reduce(0, group_P, values_P.detach(), "amax")
    sums = values_P.new_zeros(num_groups).index_add(0, group_P, (values_P - most[group_P]).exp())
    return most + sums.log()


def _fit_logistic(
    inputs_PI: NDArray[np.float64], right_P: NDArray[np.bool_], weights_P: NDArray[np.float64], num_clips: int
) -> NDArray[np.float64]:
    """Weights of a logistic regression; the last input is 1 everywhere and is the bias."""
    inputs, right = torch.from_numpy(inputs_PI), torch.from_numpy(right_P).double()
    weights = torch.from_numpy(weights_P / weights_P.sum())
    mean_I, scale_I = inputs.mean(dim=0), inputs.std(dim=0).clamp(min=1e-6)
    mean_I[-1], scale_I[-1] = 0.0, 1.0
    scaled = (inputs - mean_I) / scale_I

    def loss(parameters_I: torch.Tensor) -> torch.Tensor:
        losses_P = torch.nn.functional.binary_cross_entropy_with_logits(scaled @ parameters_I, right, reduction="none")
        return (weights * losses_P).sum()

    found_I = _minimum(loss, inputs.shape[1], num_clips) / scale_I
    found_I[-1] -= (found_I[:-1] * mean_I[:-1]).sum()
    return found_I.numpy()


def _minimum(loss: Callable[[torch.Tensor], torch.Tensor], size: int, num_clips: int) -> torch.Tensor:
    """Where a convex loss, the mean over clips, is least with the prior, float64."""
    parameters = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(parameters) + _PRIOR / num_clips * parameters.square().sum()
        value.backward()
        return value

    optimizer.step(step)
    return parameters.detach()


def _operating_points(verifier: Verifier, searches: Sequence[JudgedCandidates]) -> tuple[OperatingPoint, ...]:
    """What each threshold gives, as means over the banks, a clip as much as another; see `OperatingPoint`."""
    thresholds = np.linspace(0, 1, _MOST_POINTS, endpoint=False)[1:]
    found = []
    for search in searches:
        present, right = probabilities_of(verifier, search)
        missing, _ = probabilities_of(verifier, search.without_right())
        shares = search.shares[~search.parts_P]
        alarms_T = (missing[:, None] >= thresholds).sum(axis=0)
        accepted_T = ((present[:, None] >= thresholds) * shares[:, None]).sum(axis=0) + alarms_T
        right_T = ((present[right, None] >= thresholds) * shares[right, None]).sum(axis=0)
        precision_T = np.divide(right_T, accepted_T, out=np.ones(len(thresholds)), where=accepted_T > 0)
        recall_T = right_T / max(int((search.gold_C > 0).sum()), 1)
        found.append((precision_T, recall_T, alarms_T * 3600 / max(search.seconds, 1e-9)))
    means = np.mean(found, axis=0)
    return tuple(OperatingPoint(*map(float, point)) for point in zip(thresholds, *means, strict=True))


def probabilities_of(verifier: Verifier, judged: JudgedCandidates) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """How likely each candidate was said, as a search among as many terms would say, and whether it was; no parts."""
    strengths_P = verifier.strengths_of(judged.evidence.features_PF)
    told_P = verifier.probabilities(strengths_P, _margins_of(strengths_P, judged), judged.num_terms)
    return told_P[~judged.parts_P], judged.right_P[~judged.parts_P]
