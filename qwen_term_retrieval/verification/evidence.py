"""What speaks for a candidate: how its sounds fit the frames, and how much of what was heard it explains.

A candidate is a term that the first stage proposes for a place in a clip. Of its pronunciations the best-fitting one
counts; it may lie anywhere in that place, so its span comes out too. All are plain numbers for a linear model:

- `cosine`: of its best window, which knows of more than sounds;
- `fit`: log-likelihood of the best path against what the frames themselves would say, 0 at best (`best_paths`, free).
  It is the sum over sounds, with a floor for each and none for all: else a sentence that is nowhere near would fit
  better, sound by sound, than what was said with one sound amiss;
- `sounds`: how many it has, each of which makes a good fit less likely by chance: a long term that fits comes before a
  part of it, which fits as well;
- `few_beside`: how many sounds were heard within half a second before and after it that it leaves unexplained, where
  they are one to three: "call" is a part of "calling";
- `many_beside`: 1 where they are more: it may be a part of something longer, or stand among other words in a sentence.

Shapes: B clips, U sub-frames, C classes, P candidates, Q pairs of a candidate and a pronunciation, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_term_retrieval.verification.alignment import Pairs, best_paths
from qwen_term_retrieval.verification.pronunciations import BLANK, PronunciationBank

FEATURES = ("cosine", "fit", "sounds", "few_beside", "many_beside")
# What an impossible sound costs, and a term of which nobody knows how it sounds.
_IMPOSSIBLE_SOUND, _MUTE = -15.0, -80.0
_BESIDE_SECONDS, _FEW = 0.5, 3


@dataclass(frozen=True, eq=False)
class Candidates:
    """Terms that a first stage proposes.

    clips_P, owners_P: int64, clip of the batch, and owner in the bank. cosines_P: float32. starts_P, ends_P: int64,
    the sub-frames in which each is looked for.
    """

    clips_P: NDArray[np.int64]
    owners_P: NDArray[np.int64]
    cosines_P: NDArray[np.float32]
    starts_P: NDArray[np.int64]
    ends_P: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.clips_P)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was found about each candidate.

    features_PF: float32, in the order of `FEATURES`.
    starts_P, ends_P: int64, its best path in sub-frames, an end is the frame after; 0 and 0 without a pronunciation.
    """

    features_PF: NDArray[np.float32]
    starts_P: NDArray[np.int64]
    ends_P: NDArray[np.int64]

    def select(self, chosen_P: NDArray[np.bool_]) -> Evidence:
        return Evidence(self.features_PF[chosen_P], self.starts_P[chosen_P], self.ends_P[chosen_P])

    @classmethod
    def joined(cls, parts: Sequence[Evidence]) -> Evidence:
        columns = ((part.features_PF, part.starts_P, part.ends_P) for part in parts)
        return cls(*map(np.concatenate, zip(*columns, strict=True)))


def gather_evidence(
    log_probs_BUC: torch.Tensor,
    num_sub_frames_B: NDArray[np.int64],
    bank: PronunciationBank,
    candidates: Candidates,
    *,
    frame_rate: float,
) -> Evidence:
    """Align every candidate with its clip.

    Args:
        log_probs_BUC: of the phoneme head, on any device.
        num_sub_frames_B: of each clip; behind them is anything.
        bank: pronunciations of all terms, owned by their places in the index.
        candidates: to look at again.
        frame_rate: sub-frames a second.
    """
    rows_Q, candidate_Q = _pronunciations_of(bank, candidates.owners_P)
    if not len(rows_Q):
        return _nothing(candidates)
    pairs = Pairs(rows_Q, *(values_P[candidate_Q] for values_P in _places(candidates)))
    paths = best_paths(log_probs_BUC, bank, pairs, free=True)
    best_P, spoken_P = _best_pair_of_each(paths.scores_P, candidate_Q, len(candidates))
    starts_P = np.where(spoken_P, paths.starts_P[best_P], candidates.starts_P)
    ends_P = np.where(spoken_P, paths.ends_P[best_P], candidates.starts_P)
    known_P = np.bincount(candidate_Q, minlength=len(candidates)) > 0
    sounds_P = np.where(known_P, np.diff(paths.offsets_P1)[best_P], 1)
    fit_P = np.where(spoken_P, paths.scores_P[best_P], -np.inf).clip(min=_IMPOSSIBLE_SOUND * sounds_P)
    heard = _HeardSounds(log_probs_BUC, num_sub_frames_B)
    beside = round(_BESIDE_SECONDS * frame_rate)
    near_P = heard.between(candidates.clips_P, starts_P - beside, ends_P + beside)
    beside_P = near_P - heard.between(candidates.clips_P, starts_P, ends_P)
    columns = {
        "cosine": candidates.cosines_P,
        "fit": np.where(known_P, fit_P, _MUTE),
        "sounds": sounds_P,
        "few_beside": np.where(beside_P <= _FEW, beside_P, 0),
        "many_beside": beside_P > _FEW,
    }
    features_PF = np.stack([columns[name] for name in FEATURES], axis=1).astype(np.float32)
    return Evidence(features_PF, starts_P, ends_P)


def _places(candidates: Candidates) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    return candidates.clips_P, candidates.starts_P, candidates.ends_P


def _nothing(candidates: Candidates) -> Evidence:
    """The evidence for candidates of which none can be said."""
    features_PF = np.zeros((len(candidates), len(FEATURES)), np.float32)
    features_PF[:, FEATURES.index("fit")], features_PF[:, FEATURES.index("sounds")] = _MUTE, 1
    features_PF[:, FEATURES.index("cosine")] = candidates.cosines_P
    return Evidence(features_PF, candidates.starts_P, candidates.starts_P)


def _pronunciations_of(
    bank: PronunciationBank, owners_P: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the bank, and the candidate that each is of, candidate by candidate; owners ascend in the bank."""
    first_P = np.searchsorted(bank.owners_R, owners_P, side="left")
    count_P = np.searchsorted(bank.owners_R, owners_P, side="right") - first_P
    candidate_Q = np.arange(len(owners_P)).repeat(count_P)
    place_Q = np.arange(len(candidate_Q)) - (count_P.cumsum() - count_P).repeat(count_P)
    return first_P[candidate_Q] + place_Q, candidate_Q


def _best_pair_of_each(
    scores_Q: NDArray[np.float32], candidate_Q: NDArray[np.int64], num_candidates: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The pair of each candidate that scores best, 0 for one without; and which have a path at all."""
    best_P, spoken_P = np.zeros(num_candidates, np.int64), np.zeros(num_candidates, np.bool_)
    order_Q = np.lexsort((scores_Q, candidate_Q))  # the best of each stands last, and stays
    best_P[candidate_Q[order_Q]] = order_Q
    spoken_P[candidate_Q[scores_Q > -np.inf]] = True
    return best_P, spoken_P


class _HeardSounds:
    """Where the head hears a new sound when each frame decides by itself, counted up along each clip."""

    def __init__(self, log_probs_BUC: torch.Tensor, num_sub_frames_B: NDArray[np.int64]):
        heard_BU = log_probs_BUC.argmax(dim=2).cpu().numpy()
        before_BU = np.pad(heard_BU[:, :-1], ((0, 0), (1, 0)), constant_values=BLANK)
        within_BU = np.arange(heard_BU.shape[1]) < num_sub_frames_B[:, None]
        new_BU = (heard_BU != BLANK) & (heard_BU != before_BU) & within_BU
        self.counts_BU1 = np.pad(new_BU.cumsum(axis=1), ((0, 0), (1, 0)))

    def between(
        self, clips_P: NDArray[np.int64], starts_P: NDArray[np.int64], ends_P: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Sounds that begin in these spans, which may reach over the edges of the clip."""
        last = self.counts_BU1.shape[1] - 1
        first_P, after_P = starts_P.clip(0, last), ends_P.clip(0, last)
        return self.counts_BU1[clips_P, after_P] - self.counts_BU1[clips_P, first_P]
