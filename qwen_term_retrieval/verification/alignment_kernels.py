"""The loops of CTC alignment, compiled by numba: `alignment.py` says what they compute.

A pronunciation of n sounds has n + 1 slots: a gap (blank), and behind it, but for the last, a sound. One pair is
carried over all of its frames before the next, so that its states stay in a core's first cache, and the loop over slots
has no branches, so that it runs on vectors. Both release the interpreter's lock.

Shapes: B clips, T frames, C classes with blank 0, P pairs, S sounds of all pairs laid end to end, N = S + P slots.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_NEVER = np.float32(-np.inf)
_GAP, _SOUND = 0, 1
# exp(-17) is below a float32's rounding of 1.
_NEGLIGIBLE = -17.0
# Bits of a choice: a gap was entered from the sound before it; a sound was entered, not stayed in.
_FROM_SOUND, _ENTERED = np.uint8(1), np.uint8(2)
_E2, _E3, _E4, _E5, _E6, _E7, _E8 = (1 / math.factorial(n) for n in range(2, 9))
_A3, _A5, _A7, _A9, _A11, _A13, _A15 = (1 / n for n in range(3, 16, 2))


@njit(cache=True, nogil=True, error_model="numpy")
def viterbi(
    relative_BTC, offsets_P1, classes_S, clips_P, starts_P, ends_P, free,
    scores_P, sound_starts_S, sound_ends_S, sound_scores_S, gap_scores_N,
):  # fmt: skip
    """The likeliest path of each pair, into the last five arrays, as `BestPaths` has them.

    Args:
        relative_BTC: float32, log-probabilities less those of each frame's likeliest class.
        offsets_P1: int64, the sounds of pair p are `classes_S[offsets_P1[p] : offsets_P1[p + 1]]`.
        free: the first gap and the last cost nothing.
    """
    most_sounds, most_frames = 0, 0
    for pair in range(len(clips_P)):
        most_sounds = max(most_sounds, offsets_P1[pair + 1] - offsets_P1[pair])
        most_frames = max(most_frames, ends_P[pair] - starts_P[pair])
    # Before and after a frame. `sounds` are one ahead: the sound before slot s is `sounds[:, s]`, its own behind that.
    gaps, sounds = np.empty((2, most_sounds + 1), np.float32), np.empty((2, most_sounds + 1), np.float32)
    classes, repeats = np.empty(most_sounds, np.int32), np.empty(most_sounds, np.float32)
    choices_TN = np.empty((most_frames, most_sounds + 1), np.uint8)
    for pair in range(len(clips_P)):
        offset, first = offsets_P1[pair], starts_P[pair]
        num_sounds, num_frames = offsets_P1[pair + 1] - offset, ends_P[pair] - first
        emissions_TC = relative_BTC[clips_P[pair]]
        _begin(classes_S[offset : offset + num_sounds], classes, repeats, gaps, sounds)
        for frame in range(num_frames):
            emitted = emissions_TC[first + frame]
            blank, now, then = emitted[0], frame & 1, 1 - (frame & 1)
            choices = choices_TN[frame]
            for slot in range(num_sounds):
                before, gap, sound = sounds[now, slot], gaps[now, slot], sounds[now, slot + 1]
                from_sound = before > gap
                arrived = before if from_sound else gap
                # From an equal sound only by way of the gap.
                entered = before + repeats[slot]
                entered = entered if entered > gap else gap
                enters = entered > sound
                choices[slot] = np.uint8(from_sound) * _FROM_SOUND | np.uint8(enters) * _ENTERED
                sounds[then, slot + 1] = (entered if enters else sound) + emitted[classes[slot]]
                gaps[then, slot] = arrived + blank
            before, gap = sounds[now, num_sounds], gaps[now, num_sounds]
            choices[num_sounds] = np.uint8(before > gap) * _FROM_SOUND
            arrived = before if before > gap else gap
            gaps[then, num_sounds] = arrived if free else arrived + blank
            if free:
                gaps[then, 0] = gaps[now, 0]
        last_sound, last_gap = sounds[num_frames & 1, num_sounds], gaps[num_frames & 1, num_sounds]
        score = max(last_sound, last_gap)
        scores_P[pair] = score
        said = score > _NEVER
        for sound in range(offset, offset + num_sounds):
            sound_starts_S[sound], sound_ends_S[sound] = first, first
            sound_scores_S[sound] = np.float32(0.0) if said else _NEVER
        gap_scores = gap_scores_N[offset + pair : offset + pair + num_sounds + 1]
        gap_scores[:] = 0.0
        if not said:
            continue
        in_sound = last_sound >= last_gap
        slot = num_sounds - 1 if in_sound else num_sounds
        for frame in range(num_frames - 1, -1, -1):
            emitted, choice = emissions_TC[first + frame], choices_TN[frame, slot]
            if in_sound:
                sound = offset + slot
                if sound_ends_S[sound] == first:
                    sound_ends_S[sound] = first + frame + 1
                sound_starts_S[sound] = first + frame
                sound_scores_S[sound] += emitted[classes[slot]]
                if choice & _ENTERED:
                    if choice & _FROM_SOUND and repeats[slot] == 0.0:
                        slot -= 1
                    else:
                        in_sound = False
            else:
                if not (free and (slot == 0 or slot == num_sounds)):
                    gap_scores[slot] += emitted[0]
                if choice & _FROM_SOUND:
                    slot -= 1
                    in_sound = True


@njit(cache=True, nogil=True, error_model="numpy")
def forward(relative_BTC, offsets_P1, classes_S, clips_P, starts_P, ends_P, free, order_P, scores_P):
    """The logarithm of the sum of all paths of each pair, into `scores_P`; the other arguments as of `viterbi`.

    Sums of logarithms cost far more than the rest, so that here the slots of all pairs lie end to end, and a frame of
    all of them is one loop over vectors.

    Args:
        order_P: int64, the pairs, the longest span first, so that those still running are in front.
    """
    num_slots = len(classes_S) + len(clips_P)
    num_classes = relative_BTC.shape[2]
    emissions = relative_BTC.ravel()
    places_N, pays_N = np.empty(num_slots, np.int64), np.ones(num_slots, np.bool_)
    sounds_N, blocks_N = np.zeros(num_slots, np.int64), np.zeros(num_slots)
    repeats_N = np.zeros(num_slots, np.bool_)
    # Sounds are one ahead: before a pair's first slot is the sound behind the last gap of another, which never is.
    gaps, sounds = np.full((2, num_slots), -np.inf), np.full((2, num_slots + 1), -np.inf)
    emitted = np.empty((2, num_slots))
    last_P, slot = np.empty(len(clips_P), np.int64), 0
    for pair in order_P:
        offset, end = offsets_P1[pair], offsets_P1[pair + 1]
        last_P[pair] = slot + end - offset
        places_N[slot : last_P[pair] + 1] = (clips_P[pair] * relative_BTC.shape[1] + starts_P[pair]) * num_classes
        gaps[0, slot] = 0.0
        pays_N[slot], pays_N[last_P[pair]] = not free, not free
        for sound in range(offset, end):
            sounds_N[slot] = classes_S[sound]
            repeats_N[slot] = sound > offset and classes_S[sound] == classes_S[sound - 1]
            slot += 1
        blocks_N[slot] = -np.inf
        slot += 1
    running = len(order_P)
    for frame in range(ends_P[order_P[0]] - starts_P[order_P[0]] if len(order_P) else 0):
        while ends_P[order_P[running - 1]] - starts_P[order_P[running - 1]] <= frame:
            running -= 1
        slots, now, then = last_P[order_P[running - 1]] + 1, frame & 1, 1 - (frame & 1)
        for slot in range(slots):
            place = places_N[slot] + frame * num_classes
            emitted[_GAP, slot] = emissions[place] if pays_N[slot] else 0.0
            emitted[_SOUND, slot] = emissions[place + sounds_N[slot]] + blocks_N[slot]
        _sum_up(
            emitted[_GAP, :slots], emitted[_SOUND], repeats_N,
            gaps[now], sounds[now], sounds[now, 1:], gaps[then], sounds[then, 1:],
        )  # fmt: skip
    for pair in range(len(clips_P)):
        after = (ends_P[pair] - starts_P[pair]) & 1
        scores_P[pair] = _log_of_sum(sounds[after, last_P[pair]], gaps[after, last_P[pair]])


@njit(cache=True, nogil=True, error_model="numpy")
def _sum_up(gap_costs_N, sound_costs_N, repeats_N, gap_N, before_N, sound_N, next_gap_N, next_sound_N):
    """One frame of `forward`: a loop by itself, over few arrays, so that the compiler makes vectors of it."""
    for slot in range(len(gap_costs_N)):
        gap = gap_N[slot]
        arrived = _log_of_sum(before_N[slot], gap)
        entered = gap if repeats_N[slot] else arrived
        next_sound_N[slot] = _log_of_sum(entered, sound_N[slot]) + sound_costs_N[slot]
        next_gap_N[slot] = arrived + gap_costs_N[slot]


@njit(cache=True, nogil=True)
def _begin(said, classes, repeats, gaps, sounds):
    """The states before the first frame: in the first gap. `repeats` are -inf where a sound is that before it."""
    gaps[:, : len(said) + 1] = _NEVER
    sounds[:, : len(said) + 1] = _NEVER
    gaps[0, 0] = 0.0
    for slot in range(len(said)):
        classes[slot] = said[slot]
        repeats[slot] = _NEVER if slot and said[slot] == said[slot - 1] else 0.0


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _log_of_sum(one, other):
    """log(exp(one) + exp(other)) to 1e-8, without a call or a branch; -inf of two -inf."""
    more = one if one > other else other
    less = (other if one > other else one) - more
    counts = less > _NEGLIGIBLE  # False of NaN, which -inf less itself is
    x = (less if counts else _NEGLIGIBLE) * (1 / 32)
    # exp by its series near 0, and five squarings.
    y = 1 + x * (1 + x * (_E2 + x * (_E3 + x * (_E4 + x * (_E5 + x * (_E6 + x * (_E7 + x * _E8)))))))
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    # log(1 + y) = 2 artanh(z), z at most 1/3.
    z = y / (2 + y)
    s = z * z
    log = 2 * z * (1 + s * (_A3 + s * (_A5 + s * (_A7 + s * (_A9 + s * (_A11 + s * (_A13 + s * _A15)))))))
    return more + (log if counts else 0.0)
