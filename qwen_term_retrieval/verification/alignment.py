"""CTC alignment: how well pronunciations fit the frames of a span, and which frame says which sound.

Two questions, and two scores of each:

- *Is the span this term, and nothing else?* The paths of CTC over all of its frames. `forward_scores` is the
  log-probability of all of them, the negative of `torch.nn.functional.ctc_loss`.
- *Is the term said somewhere in the span?* (`free=True`) Every frame's log-probabilities are taken relative to the
  frame's likeliest class, so that saying what the head hears costs nothing. A path begins at any frame with the first
  sound and ends at any later one with the last; frames before and after it cost 0. A score is then a log-likelihood
  ratio between "the term is here" and the best that the frames could say: 0 where they say just the term, less where
  they do not. `forward_scores` adds up all such paths, each once, and may be a little above 0.

`best_paths` is the likeliest single path (Viterbi), with the frames of each sound and what each sound, and each gap
between sounds, costs against the frames' own best: a near twin differs in one of them. A score per sound is a score
divided by `bank.lengths`; without a free start and end, short terms are not preferred and it need not be.

A pronunciation that no path can say, because the span has too few frames (two equal sounds need a blank between
them) or the classes it needs are at -inf, scores -inf; nothing is ever NaN.

The loops are compiled (`alignment_kernels.py`) and run on the CPU, wherever the log-probabilities are: 200
pronunciations against 150 frames take a millisecond or two of one core, less than as many launches on a GPU.

Shapes: B clips, T frames, C classes with blank 0, P pairs, S sounds of the pairs' pronunciations, N = S + P gaps, one
before each sound and one behind the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qwen_term_retrieval.verification.alignment_kernels import forward, viterbi
from qwen_term_retrieval.verification.pronunciations import PronunciationBank


@dataclass(frozen=True, eq=False)
class Pairs:
    """Which pronunciation is held against which frames. All int64 (P,).

    Args:
        rows_P: pronunciations of the bank.
        clips_P: positions in the batch.
        starts_P, ends_P: first frame of the span, and the frame after its last; a span may be empty.
    """

    rows_P: np.ndarray
    clips_P: np.ndarray
    starts_P: np.ndarray
    ends_P: np.ndarray

    @classmethod
    def of_whole_clips(cls, rows_P: np.ndarray, clips_P: np.ndarray, num_frames_B: np.ndarray) -> Pairs:
        """Pairs of pronunciations and all the frames of clips, which have `num_frames_B` without padding."""
        clips_P = np.asarray(clips_P, dtype=np.int64)
        rows_P, ends_P = np.asarray(rows_P, dtype=np.int64), np.asarray(num_frames_B, dtype=np.int64)[clips_P]
        return cls(rows_P, clips_P, np.zeros_like(ends_P), ends_P)

    def __len__(self) -> int:
        return len(self.rows_P)

    def select(self, pairs: np.ndarray) -> Pairs:
        return Pairs(self.rows_P[pairs], self.clips_P[pairs], self.starts_P[pairs], self.ends_P[pairs])


@dataclass(frozen=True, eq=False)
class BestPaths:
    """The likeliest path of each pair; frames are those of the clip, an end is the frame after.

    A pair that cannot be said has the score -inf and sounds of no length at the start of its span.

    scores_P: float32. starts_P, ends_P: int64, of the first and the last sound.
    offsets_P1: int64, the sounds of pair p are `offsets_P1[p] : offsets_P1[p + 1]` of what follows.
    sound_starts_S, sound_ends_S: int64. sound_scores_S: float32, at most 0: the log-probability of a sound over its
    frames, relative to the likeliest class of each.
    gap_scores_N: float32, the same of the blanks before each sound, and of those after the last: pair p has
    `offsets_P1[p] + p : offsets_P1[p + 1] + p + 1`. A sound that was heard and is not in the pronunciation is here.
    """

    scores_P: np.ndarray
    starts_P: np.ndarray
    ends_P: np.ndarray
    offsets_P1: np.ndarray
    sound_starts_S: np.ndarray
    sound_ends_S: np.ndarray
    sound_scores_S: np.ndarray
    gap_scores_N: np.ndarray


@torch.inference_mode()
def forward_scores(
    log_probs_BTC: torch.Tensor, bank: PronunciationBank, pairs: Pairs, *, free: bool = False
) -> torch.Tensor:
    """The log-probability of each pair, all paths together: float32 (P,), on the CPU.

    Args:
        log_probs_BTC: natural logarithms of each frame's probabilities, on any device.
        free: the term may be a part of the span, see the module.

    Raises:
        ValueError: a pair points outside the batch, a clip or the bank; log-probabilities are NaN or above 0, or are
            of another number of classes than the bank.

    Example:
        >>> bank = PronunciationBank.of([[[1, 2]], [[2, 1]]], num_classes=3)
        >>> log_probs_BTC = torch.tensor([[[0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]]).log()
        >>> pairs = Pairs.of_whole_clips(np.array([0, 1]), np.array([0, 0]), np.array([2]))
        >>> [round(p, 2) for p in forward_scores(log_probs_BTC, bank, pairs).exp().tolist()]
        [0.64, 0.01]
    """
    relative_BTC, best_BT, said = _laid_out(log_probs_BTC, bank, pairs)
    scores_P = np.empty(len(pairs), np.float32)
    order_P = np.argsort(pairs.starts_P - pairs.ends_P, kind="stable")
    forward(relative_BTC, *said, pairs.clips_P, pairs.starts_P, pairs.ends_P, free, order_P, scores_P)
    return torch.from_numpy(scores_P if free else scores_P + _sums(best_BT, pairs))


@torch.inference_mode()
def best_paths(log_probs_BTC: torch.Tensor, bank: PronunciationBank, pairs: Pairs, *, free: bool = False) -> BestPaths:
    """The likeliest path of each pair, and when it says which sound; arguments and errors as of `forward_scores`.

    Example:
        >>> bank = PronunciationBank.of([[[2]]], num_classes=3)
        >>> log_probs_BTC = torch.tensor([[[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1]]]).log()
        >>> pairs = Pairs.of_whole_clips(np.array([0]), np.array([0]), np.array([3]))
        >>> paths = best_paths(log_probs_BTC, bank, pairs, free=True)
        >>> paths.scores_P.tolist(), paths.starts_P.tolist(), paths.ends_P.tolist()
        ([0.0], [1], [2])
    """
    relative_BTC, best_BT, said = _laid_out(log_probs_BTC, bank, pairs)
    offsets_P1, num_pairs = said[0], len(pairs)
    num_sounds = int(offsets_P1[-1])
    scores_P, sound_scores_S, gap_scores_N = (
        np.empty(size, np.float32) for size in (num_pairs, num_sounds, num_sounds + num_pairs)
    )
    starts_S, ends_S = np.empty((2, num_sounds), np.int64)
    viterbi(
        relative_BTC, *said, pairs.clips_P, pairs.starts_P, pairs.ends_P, free,
        scores_P, starts_S, ends_S, sound_scores_S, gap_scores_N,
    )  # fmt: skip
    return BestPaths(
        scores_P if free else scores_P + _sums(best_BT, pairs), starts_S[offsets_P1[:-1]], ends_S[offsets_P1[1:] - 1],
        offsets_P1, starts_S, ends_S, sound_scores_S, gap_scores_N,
    )  # fmt: skip


def _laid_out(
    log_probs_BTC: torch.Tensor, bank: PronunciationBank, pairs: Pairs
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """What kernels read: relative emissions, the best of each frame, and each pair's sounds, offsets first."""
    relative_BTC, best_BT = relative_emissions(log_probs_BTC)
    _check(log_probs_BTC, bank, pairs)
    own = bank.select(pairs.rows_P)
    sounds = (own.offsets_R1, np.ascontiguousarray(own.classes_S))
    return np.ascontiguousarray(relative_BTC.cpu().numpy()), best_BT.cpu().numpy(), sounds


def relative_emissions(log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (…, T, C) relative to each frame's likeliest class, and that class's (…, T), in float32.

    A frame in which nothing is possible has 0 for its best, and stays at -inf.

    Raises:
        ValueError: NaN, or above 0.
    """
    # Written so that NaN, which compares with nothing, fails as well; rounding may carry a softmax above 1.
    if not bool((log_probs <= 1e-3).all()):
        raise ValueError("log-probabilities are NaN or above 0; was the phoneme head trained to NaN?")
    log_probs = log_probs.float()
    best = log_probs.amax(dim=-1)
    best = best.masked_fill(best == -torch.inf, 0.0)
    return log_probs - best[..., None], best


def _check(log_probs_BTC: torch.Tensor, bank: PronunciationBank, pairs: Pairs) -> None:
    if log_probs_BTC.ndim != 3 or log_probs_BTC.shape[2] != bank.num_classes:
        raise ValueError(
            f"expected log-probabilities (B, T, {bank.num_classes}), not {tuple(log_probs_BTC.shape)}: "
            "bank and head must have the same sounds"
        )
    num_clips, num_frames, _ = log_probs_BTC.shape
    for name, values_P, limit in (
        ("rows_P", pairs.rows_P, len(bank)),
        ("clips_P", pairs.clips_P, num_clips),
        ("ends_P", pairs.ends_P, num_frames + 1),
        ("starts_P", pairs.starts_P, pairs.ends_P + 1),
    ):
        wrong_P = (values_P < 0) | (values_P >= limit)
        if wrong_P.any():
            pair = int(wrong_P.argmax())
            raise ValueError(
                f"pair {pair}: {name} is {values_P[pair]}, of {len(bank)} pronunciations, {num_clips} clips, "
                f"{num_frames} frames and a span that ends at {pairs.ends_P[pair]}"
            )


def _sums(best_BT: np.ndarray, pairs: Pairs) -> np.ndarray:
    """What the likeliest class of each frame adds up to in each span, float32 (P,)."""
    sums_BT1 = np.pad(best_BT.astype(np.float64).cumsum(axis=1), ((0, 0), (1, 0)))
    ends_P, starts_P = sums_BT1[pairs.clips_P, pairs.ends_P], sums_BT1[pairs.clips_P, pairs.starts_P]
    return (ends_P - starts_P).astype(np.float32)
