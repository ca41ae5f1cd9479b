"""From evidence to a probability: two small linear models, fitted on speech that is no test speech.

The first ranks: a conditional logit (McFadden 1974) over the candidates of a clip gives each a *strength*, a weighted
sum of its evidence. The second believes: a logistic regression on the strength, on the margin over the strongest other
candidate that claims the same place, and on how many terms were searched. Near twins have near strengths, so a term
that was not in the glossary cannot lend its probability to its twin; and the same evidence is worth less among more
terms. Fitted over banks of many sizes, one threshold serves them all. A term that stands in another is no
rival of it: who says "digit pin" says "pin".

Shapes: P candidates, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_term_retrieval.errors import VerifierError
from qwen_term_retrieval.verification.evidence import FEATURES

BELIEFS = ("strength", "margin", "terms", "bias")
_MOST_MARGIN = 8.0
_DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class OperatingPoint:
    """What accepting every probability of at least `threshold` gave on the speech that the verifier was fitted on.

    Each clip was searched twice, its own terms in the bank and missing from it. `precision` is of the answers of both,
    `recall` of the terms that were there, `false_alarms_per_hour` of the clips whose terms were missing. The terms of a
    clip count together as much as the one of another.
    """

    threshold: float
    precision: float
    recall: float
    false_alarms_per_hour: float


@dataclass(frozen=True)
class Verifier:
    """How evidence becomes a probability.

    Args:
        strengths: weight of each of `FEATURES`.
        beliefs: weight of each of `BELIEFS`.
        points: from the lowest threshold up.
        threshold: the probability from which a term counts as heard.

    Raises:
        VerifierError: a weight is missing or of a feature that there is not.
    """

    strengths: Mapping[str, float]
    beliefs: Mapping[str, float]
    points: Sequence[OperatingPoint] = ()
    threshold: float = _DEFAULT_THRESHOLD

    def __post_init__(self) -> None:
        for given, known in ((self.strengths, FEATURES), (self.beliefs, BELIEFS)):
            if set(given) != set(known):
                raise VerifierError(
                    f"a verifier weighs {', '.join(known)}, this one {', '.join(given)}: it was fitted by another "
                    "version; `qtr calibrate` fits it anew"
                )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Verifier:
        """The verifier that `to_dict` wrote, as a model's config holds it."""
        points = tuple(OperatingPoint(**point) for point in settings.get("points", ()))
        return cls(**{**settings, "points": points})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def strengths_of(self, features_PF: NDArray[np.float32]) -> NDArray[np.float64]:
        """The strength of each candidate (P,): what ranks the candidates of a clip."""
        return features_PF.astype(np.float64) @ np.array([self.strengths[name] for name in FEATURES])

    def probabilities(
        self, strengths_P: NDArray[np.float64], margins_P: NDArray[np.float64], num_terms: int
    ) -> NDArray[np.float64]:
        """How likely each candidate was said (P,).

        Args:
            strengths_P, margins_P: see `strengths_of` and `margins`.
            num_terms: that were searched.
        """
        weights = self.beliefs
        logits_P = belief_inputs(strengths_P, margins_P, num_terms) @ [weights[name] for name in BELIEFS]
        return 1 / (1 + np.exp(-logits_P))

    def threshold_for(self, *, precision: float | None = None, false_alarms_per_hour: float | None = None) -> float:
        """The lowest threshold that kept what is wanted, on the speech that the verifier was fitted on.

        Raises:
            VerifierError: none did; says what the best one reached.
        """
        if not self.points:
            raise VerifierError("the verifier knows no operating points; `qtr calibrate` fits it anew")
        for point in self.points:
            if (precision is None or point.precision >= precision) and (
                false_alarms_per_hour is None or point.false_alarms_per_hour <= false_alarms_per_hour
            ):
                return point.threshold
        best = max(self.points, key=lambda point: point.precision)
        raise VerifierError(
            f"no threshold kept {_wanted(precision, false_alarms_per_hour)} when the verifier was fitted; "
            f"{best.threshold:.3f} came nearest: precision {best.precision:.3f}, "
            f"{best.false_alarms_per_hour:.1f} false alarms an hour"
        )


def _wanted(precision: float | None, false_alarms_per_hour: float | None) -> str:
    parts = [f"precision {precision}"] if precision is not None else []
    parts += [f"{false_alarms_per_hour} false alarms an hour"] if false_alarms_per_hour is not None else []
    return " and ".join(parts)


def belief_inputs(
    strengths_P: NDArray[np.float64], margins_P: NDArray[np.float64], num_terms: int
) -> NDArray[np.float64]:
    """What a probability is made of, (P, len(BELIEFS))."""
    ones_P = np.ones_like(strengths_P)
    return np.stack([strengths_P, margins_P, ones_P * np.log10(max(num_terms, 1)), ones_P], axis=1)


def margins(
    strengths_P: NDArray[np.float64],
    clips_P: NDArray[np.int64],
    starts_P: NDArray[np.int64],
    ends_P: NDArray[np.int64],
    words_P: Sequence[str],
    owners_P: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """How much stronger each candidate is than the strongest other one that claims more than half of its place (P,).

    Clipped to 8 either way; 8 where nothing else claims it. A term is no rival of its own, where `owners_P` tells whose
    each is. A stronger term in which a weaker one stands, word for word, is no rival of it; but the weaker one has no
    more of a margin than the stronger, without which it would not have been heard there.

    Args:
        words_P: of each candidate, normalised, a space apart.
    """
    margins_P = np.full(len(strengths_P), _MOST_MARGIN)
    for clip in np.unique(clips_P):
        own = np.flatnonzero(clips_P == clip)
        starts, ends, strengths = starts_P[own], ends_P[own], strengths_P[own]
        shared = np.minimum(ends[:, None], ends) - np.maximum(starts[:, None], starts)
        rivals = 2 * shared > np.minimum((ends - starts)[:, None], ends - starts)
        np.fill_diagonal(rivals, False)
        if owners_P is not None:
            rivals &= owners_P[own][:, None] != owners_P[own]
        wholes = _wholes([words_P[place] for place in own.tolist()], rivals & (strengths > strengths[:, None]))
        for part, of in wholes.items():
            rivals[part, of] = False
        strongest = np.where(rivals, strengths, -np.inf).max(axis=1, initial=-np.inf)
        margins = (strengths - strongest).clip(-_MOST_MARGIN, _MOST_MARGIN)
        # A whole may be a part in turn: the strongest first.
        for part in sorted(wholes, key=lambda part: -strengths[part]):
            margins[part] = min(margins[part], margins[wholes[part]].max())
        margins_P[own] = margins
    return margins_P


def _wholes(words: Sequence[str], may_be: NDArray[np.bool_]) -> dict[int, list[int]]:
    """Of each candidate that stands in others those that it stands in, where `may_be[part, whole]`."""
    holders: dict[str, list[int]] = {}
    for number, text in enumerate(words):
        if " " not in text:
            continue
        parts = text.split(" ")
        runs = {
            " ".join(parts[first:end])
            for first in range(len(parts))
            for end in range(first + 1, len(parts) + 1)
            if end - first < len(parts)
        }
        for run in runs:
            holders.setdefault(run, []).append(number)
    found = {part: [of for of in holders.get(text, ()) if may_be[part, of]] for part, text in enumerate(words)}
    return {part: of for part, of in found.items() if of}
