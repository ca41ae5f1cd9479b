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

All pairs go through one loop over frames, the sounds of all laid end to end, so that a long pronunciation pads no
other. 200 pronunciations against 150 frames take about 10 ms on a CPU; on a GPU the loop costs its launches.

Shapes: B clips, T frames, C classes with blank 0, P pairs, S sounds of the pairs' pronunciations, N = S + P slots: a
pronunciation of n sounds has n + 1, each a gap (blank) and, but for the last, the sound after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from qwen_term_retrieval.verification.pronunciations import BLANK, PronunciationBank, stretches

# Frames times slots: of the pairs that are aligned at once (16 MiB of choices), and of emissions laid out at once.
_BLOCK_CELLS = 1 << 23
_EMISSION_CELLS = 1 << 19
_GAP, _SOUND = 0, 1


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
    relative_BTC, best_BT = relative_emissions(log_probs_BTC)
    _check(log_probs_BTC, bank, pairs)
    scores_P = torch.zeros(len(pairs))
    for block in _blocks(bank, pairs):
        lattice = _Lattice(relative_BTC, bank, pairs.select(block), free=free)
        scores_P[block] = torch.logaddexp(*lattice.run(torch.logaddexp)).cpu()
    return scores_P if free else scores_P + _sums(best_BT, pairs)


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
    relative_BTC, best_BT = relative_emissions(log_probs_BTC)
    _check(log_probs_BTC, bank, pairs)
    lengths_P = bank.offsets_R1[pairs.rows_P + 1] - bank.offsets_R1[pairs.rows_P]
    offsets_P1 = np.concatenate([[0], lengths_P.cumsum()])
    num_sounds, num_pairs = int(offsets_P1[-1]), len(pairs)
    scores_P = np.zeros(num_pairs, np.float32)
    starts_S, ends_S = np.zeros((2, num_sounds), np.int64)
    sound_scores_S, gap_scores_N = np.zeros(num_sounds, np.float32), np.zeros(num_sounds + num_pairs, np.float32)
    for block in _blocks(bank, pairs):
        lattice = _Lattice(relative_BTC, bank, pairs.select(block), free=free)
        sounds = stretches(offsets_P1[block], lengths_P[block])
        gaps = stretches(offsets_P1[block] + block, lengths_P[block] + 1)
        scores_P[block], starts_S[sounds], ends_S[sounds], sound_scores_S[sounds], gap_scores_N[gaps] = lattice.best()
    if not free:
        scores_P += _sums(best_BT, pairs).numpy()
    return BestPaths(
        scores_P, starts_S[offsets_P1[:-1]], ends_S[offsets_P1[1:] - 1],
        offsets_P1, starts_S, ends_S, sound_scores_S, gap_scores_N,
    )  # fmt: skip


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


def _sums(best_BT: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """What the likeliest class of each frame adds up to in each span, float32 (P,) on the CPU."""
    sums_BT1 = torch.nn.functional.pad(best_BT.double().cumsum(dim=1), (1, 0)).cpu().numpy()
    ends_P, starts_P = sums_BT1[pairs.clips_P, pairs.ends_P], sums_BT1[pairs.clips_P, pairs.starts_P]
    return torch.from_numpy(ends_P - starts_P).float()


def _blocks(bank: PronunciationBank, pairs: Pairs) -> Iterator[np.ndarray]:
    """Positions of pairs that are aligned at once, the longest span first, so that those still running are in front."""
    lengths_P = pairs.ends_P - pairs.starts_P
    order_P = np.argsort(-lengths_P, kind="stable")
    rows_P = pairs.rows_P[order_P]
    cells_P = (bank.offsets_R1[rows_P + 1] - bank.offsets_R1[rows_P] + 1) * lengths_P[order_P]
    block_P = cells_P.cumsum() // _BLOCK_CELLS
    yield from np.split(order_P, np.flatnonzero(np.diff(block_P)) + 1) if len(pairs) else ()


class _Lattice:
    """The states of some pairs, the longest span first: of each slot its gap, and the sound after it."""

    def __init__(self, relative_BTC: torch.Tensor, bank: PronunciationBank, pairs: Pairs, *, free: bool):
        self.device = relative_BTC.device
        self.starts_P, self.spans_P = pairs.starts_P, pairs.ends_P - pairs.starts_P
        bank = bank.select(pairs.rows_P)
        self.slots_P = bank.lengths + 1
        ends_P = self.slots_P.cumsum()
        self.last_P, first_P = ends_P - 1, ends_P - self.slots_P
        self.num_slots = int(ends_P[-1])
        sound_N = np.ones(self.num_slots, dtype=bool)
        sound_N[self.last_P] = False
        # Two more classes: one that is impossible, the sound after the last gap, and one that costs nothing.
        num_frames, num_classes = relative_BTC.shape[1:]
        self.stride, impossible, for_nothing = num_classes + 2, num_classes, num_classes + 1
        class_2N = np.full((2, self.num_slots), BLANK)
        class_2N[_SOUND, self.last_P], class_2N[_SOUND, sound_N] = impossible, bank.classes_S
        if free:
            class_2N[_GAP, first_P] = class_2N[_GAP, self.last_P] = for_nothing
        pads_BT2 = relative_BTC.new_tensor([-torch.inf, 0.0]).expand(*relative_BTC.shape[:2], 2)
        # Longer than its frames: slots whose span has ended look beyond it, and nobody reads what they get.
        beyond = relative_BTC.new_zeros(int(self.spans_P[0]) * self.stride)
        self.table = torch.cat([torch.cat([relative_BTC, pads_BT2], dim=2).flatten(), beyond])
        base_P = (pairs.clips_P * num_frames + pairs.starts_P) * self.stride
        self.place_2N = class_2N + base_P.repeat(self.slots_P)
        self.repeat_N = np.zeros(self.num_slots, dtype=bool)
        self.repeat_N[1:] = class_2N[_SOUND, 1:] == class_2N[_SOUND, :-1]
        self._first_P = torch.from_numpy(first_P).to(self.device)
        # Of each frame, how many pairs have it, and how many slots these have.
        self.running_T = np.searchsorted(-self.spans_P, -np.arange(self.spans_P[0]))
        self._slots_T = ends_P[self.running_T - 1]

    def run(self, join: Callable, choices_T2N: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """What each pair's last gap and last sound score after its last frame, (P,) each.

        Args:
            join: of the scores of two ways into a state: `torch.logaddexp` or `torch.maximum`.
            choices_T2N: bool, is written: whether a gap was entered from the sound before it rather than stayed in,
                and whether a sound was entered rather than stayed in.
        """
        gaps_N = torch.full((self.num_slots,), -torch.inf, device=self.device)
        gaps_N[self._first_P] = 0.0
        # One more in front: what is before slot 0. Before another pair's first slot is a sound that is impossible.
        sounds_N1 = torch.full((self.num_slots + 1,), -torch.inf, device=self.device)
        repeat_N = torch.from_numpy(self.repeat_N).to(self.device) if self.repeat_N.any() else None
        for frame, num_slots, emissions_2N in self._emissions():
            gaps, before, sounds = gaps_N[:num_slots], sounds_N1[:num_slots], sounds_N1[1 : num_slots + 1]
            arrived = join(gaps, before)
            entered = arrived if repeat_N is None else torch.where(repeat_N[:num_slots], gaps, arrived)
            if choices_T2N is not None:
                torch.gt(before, gaps, out=choices_T2N[frame, _GAP, :num_slots])
                torch.gt(entered, sounds, out=choices_T2N[frame, _SOUND, :num_slots])
            torch.add(join(sounds, entered), emissions_2N[_SOUND, :num_slots], out=sounds)
            torch.add(arrived, emissions_2N[_GAP, :num_slots], out=gaps)
        last_P = torch.from_numpy(self.last_P).to(self.device)
        # `sounds_N1` is one ahead, so that the sound before the last gap is at the gap's own place.
        return gaps_N[last_P], sounds_N1[last_P]

    def _emissions(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Of each frame its number, the slots that are still running, and what every gap and sound scores in it."""
        place_2N = torch.from_numpy(self.place_2N).to(self.device)
        step = max(1, _EMISSION_CELLS // place_2N.numel())
        for first in range(0, len(self._slots_T), step):
            frames_F = torch.arange(first, min(first + step, len(self._slots_T)), device=self.device)
            place_F2N = place_2N + frames_F[:, None, None] * self.stride
            for frame, emissions_2N in enumerate(self.table.take(place_F2N), start=first):
                yield frame, int(self._slots_T[frame]), emissions_2N

    def best(self) -> tuple[np.ndarray, ...]:
        """Scores (P,); starts, ends and scores of the sounds, in order; scores of the gaps, in order."""
        choices_T2N = torch.empty(len(self._slots_T), 2, self.num_slots, dtype=torch.bool, device=self.device)
        gaps_P, sounds_P = (scores_P.cpu().numpy() for scores_P in self.run(torch.maximum, choices_T2N))
        path_TP = self._trace(choices_T2N.cpu().numpy(), in_sound_P=sounds_P >= gaps_P)
        frames, pairs = np.nonzero(np.arange(len(path_TP))[:, None] < self.spans_P)
        states = path_TP[frames, pairs]
        emitted = self.table.cpu().numpy()[self.place_2N.ravel()[states] + frames * self.stride]
        score_2N = np.bincount(states, emitted, 2 * self.num_slots).reshape(2, -1)
        count_2N = np.bincount(states, minlength=2 * self.num_slots)
        start_2N = np.zeros(2 * self.num_slots, np.int64)
        # Backwards: of several frames of a state, the first is the one that stays.
        start_2N[states[::-1]] = frames[::-1]
        scores_P = np.maximum(gaps_P, sounds_P)
        said_N = (scores_P > -np.inf).repeat(self.slots_P)
        sound_N = self.place_2N[_SOUND] % self.stride < self.stride - 2
        starts_N = start_2N[self.num_slots :] * said_N + self.starts_P.repeat(self.slots_P)
        ends_N = starts_N + count_2N[self.num_slots :] * said_N
        sound_scores_N, gap_scores_N = np.where(said_N, score_2N[_SOUND], -np.inf), np.where(said_N, score_2N[_GAP], 0)
        return scores_P, starts_N[sound_N], ends_N[sound_N], sound_scores_N[sound_N], gap_scores_N

    def _trace(self, choices_T2N: np.ndarray, in_sound_P: np.ndarray) -> np.ndarray:
        """The state of each pair in each of its frames, int64 (T, P): the slot, plus N in its sound."""
        path_TP = np.zeros((len(choices_T2N), len(self.spans_P)), np.int64)
        kind_P, slot_P = in_sound_P.astype(np.int64), self.last_P - in_sound_P
        for frame in range(len(path_TP) - 1, -1, -1):
            running = slice(0, self.running_T[frame])
            kind, slot = kind_P[running], slot_P[running]
            path_TP[frame, running] = kind * self.num_slots + slot
            moved = choices_T2N[frame, kind, slot]
            # A sound was entered from its gap, or as its gap was: from the sound before, if that is another.
            entered_gap = choices_T2N[frame, _GAP, slot] & ~self.repeat_N[slot]
            from_sound = np.where(kind == _SOUND, moved & entered_gap, moved)
            kind_P[running] = from_sound | ((kind == _SOUND) & ~moved)
            slot_P[running] = slot - from_sound
        return path_TP
