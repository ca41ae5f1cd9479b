"""Search by sounds: the best paths of all pronunciations of a prefix tree against the frames of one clip.

Prefixes are scored level by level, all prefixes of one number of sounds before any of one more: what a prefix has
scored after each frame follows from what its parent has, in one compiled loop over its frames (`_extend`), which also
finds its bound. A prefix has a bound, which nothing that begins with it can exceed: its score after some frame, and for
the frames that follow the best that any sounds could score there, as many as its subtree still adds. A first pass with
a narrow beam, by bound, finds `keep` good terms, where these are few; the second drops only prefixes whose bound is
below the worst of the best so far, so that the answer is that of scoring every pronunciation, and looks only at frames
in which a prefix may yet lead to an answer. On speech a few thousand prefixes a level are left of any number; on noise,
where everything fits badly, nearly all. `beam` limits them: a term may then be lost whose beginning was heard so badly
that so many others fit better, and the answer says whether that can have happened.

Where the head is nearly certain of silence, neighbouring frames become one (`merge_silence`), which halves the frames.
Scores are relative to each frame's likeliest class, whole or with a free start and end, as `alignment.py` says.

Shapes: T frames, U = T + 1 (after so many frames), C classes, K kinds of bounds, M prefixes, R pronunciations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from qwen_term_retrieval.verification.prefix_tree import PrefixTree
from qwen_term_retrieval.verification.pronunciations import BLANK, stretches

_CERTAIN = 0.99
# What a pass that only looks for good terms may keep a level.
_NARROW = 200
# Prefixes whose children are scored at once: what they take bounds the memory.
_BLOCK = 8192
# Bounds and scores add up the same numbers in other orders.
_ROUNDING = 1e-3
_LEAST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Question:
    """What is asked of a tree.

    Args:
        relative_TC: float32, each frame's log-probabilities less those of its likeliest class.
        free: the term may be a part of the clip.
        bonus: added for every sound of a pronunciation.
        beam: the most prefixes of a level that go on; None for all that may lead to an answer.
    """

    relative_TC: np.ndarray
    free: bool
    bonus: float
    beam: int | None


@dataclass(frozen=True)
class Answer:
    """Pronunciations and the scores of their best paths, in no order.

    rows_R: int64. scores_R: float32. least: the worst score that was asked for. exact: whether none is missing.
    """

    rows_R: np.ndarray
    scores_R: np.ndarray
    least: float
    exact: bool


def merge_silence(relative_TC: np.ndarray) -> np.ndarray:
    """Emissions of fewer frames: neighbours in which the blank has a probability of 0.99 become one.

    The blank costs nothing there, so that a merged frame gives each class its best in them: exact but for paths that
    say several sounds within.
    """
    blank_T = relative_TC[:, BLANK] - np.logaddexp.reduce(relative_TC, axis=1)
    silent_T = blank_T >= np.log(_CERTAIN)
    starts_T = np.concatenate([[True], ~(silent_T[1:] & silent_T[:-1])])
    return np.maximum.reduceat(relative_TC, np.flatnonzero(starts_T[: len(relative_TC)]), axis=0)


def nearest_pronunciations(
    question: Question,
    tree: PrefixTree,
    keep: int,
    *,
    owners_R: np.ndarray | None = None,
    live_R: np.ndarray | None = None,
    least: float = _LEAST,
) -> Answer:
    """The pronunciations of the `keep` best terms, and those as good, as far as the clip has frames to say them.

    Args:
        owners_R: int32, the term of each pronunciation; None: each is one by itself.
        live_R: bool, False for pronunciations that are not to be found.
        least: those that score less are left out.
    """
    owners_R = np.arange(len(tree.nodes_R)) if owners_R is None else owners_R
    rest_UK = _rest(question, int(tree.sounds_left[0]))
    if len(tree) > _NARROW and keep <= _NARROW // 2:  # else it would not find that many
        least = _Pass(question, tree, rest_UK, keep, owners_R, live_R, least, _NARROW).run().least
    return _Pass(question, tree, rest_UK, keep, owners_R, live_R, least, question.beam).run()


def _rest(question: Question, most_sounds: int) -> np.ndarray:
    """The most that the frames from each on can add, if at most so many sounds are said there, float32 (U, K).

    Sounds that follow each other without a blank may count as one, which only raises the bound.
    """
    blank_T = question.relative_TC[:, BLANK]
    sound_T = np.delete(question.relative_TC, BLANK, axis=1).max(axis=1, initial=-np.inf)
    num_frames = len(blank_T)
    rest_UK = np.zeros((num_frames + 1, min(most_sounds, num_frames) + 1), np.float32)
    saying_K = rest_UK[num_frames].copy()
    for frame in range(num_frames - 1, -1, -1):
        rest_UK[frame] = rest_UK[frame + 1] + blank_T[frame]
        np.maximum(rest_UK[frame, 1:], saying_K[:-1] + (sound_T[frame] + question.bonus), out=rest_UK[frame, 1:])
        if question.free:
            np.maximum(rest_UK[frame], 0, out=rest_UK[frame])
        saying_K = np.maximum(rest_UK[frame], saying_K + sound_T[frame])
    return rest_UK


@dataclass(frozen=True)
class _Prefixes:
    """Prefixes of one number of sounds.

    bounds_M: float32, what nothing that begins with one can exceed.
    alive_M2: int32, between which numbers of frames a path of it may yet lead to an answer.
    rows_M: int64, which row of `best_KU`, float32, has the best path of each after so many frames.
    """

    nodes_M: np.ndarray
    bounds_M: np.ndarray
    alive_M2: np.ndarray
    rows_M: np.ndarray
    best_KU: np.ndarray

    def select(self, prefixes: np.ndarray) -> _Prefixes:
        nodes, bounds, alive, rows = (
            values[prefixes] for values in (self.nodes_M, self.bounds_M, self.alive_M2, self.rows_M)
        )
        return _Prefixes(nodes, bounds, alive, rows, self.best_KU)

    @staticmethod
    def join(parts: list[_Prefixes]) -> _Prefixes:
        if len(parts) == 1:
            return parts[0]
        best_KU = np.concatenate([part.best_KU[part.rows_M] for part in parts])
        nodes, bounds, alive = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("nodes_M", "bounds_M", "alive_M2")
        )
        return _Prefixes(nodes, bounds, alive, np.arange(len(best_KU)), best_KU)


class _Pass:
    """One walk down a tree, from level to level."""

    def __init__(
        self, question: Question, tree: PrefixTree, rest_UK: np.ndarray, keep: int, owners_R: np.ndarray,
        live_R: np.ndarray | None, least: float, beam: int | None,
    ):  # fmt: skip
        self.question, self.tree, self.beam = question, tree, beam
        # A sound's frames, and a bound's, side by side, as the loop over frames reads them.
        self._emissions_CT = np.ascontiguousarray(question.relative_TC.T)
        self._rest_KU = np.ascontiguousarray(rest_UK.T)
        self.keep, self.owners_R, self.live_R, self.least = keep, owners_R, live_R, least
        # The best of each term so far, and the terms that are among the best.
        self._best_N = np.full(int(owners_R.max(initial=-1)) + 1, -np.inf, np.float32)
        self._leading = np.zeros(0, np.int64)
        self._rows, self._scores = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        self._best_dropped = -np.inf

    def run(self) -> Answer:
        level, num_sounds = self._root(), 0
        while len(level.nodes_M):
            num_sounds += 1
            parts = [
                self._children(level.select(np.arange(first, min(first + _BLOCK, len(level.nodes_M)))), num_sounds)
                for first in range(0, len(level.nodes_M), _BLOCK)
            ]
            level = self._narrowed(_Prefixes.join(parts))
        rows_R, scores_R = np.concatenate(self._rows), np.concatenate(self._scores)
        enough = scores_R >= self.least - _ROUNDING
        exact = self._best_dropped < self.least - _ROUNDING
        return Answer(rows_R[enough], scores_R[enough], self.least, exact)

    def _root(self) -> _Prefixes:
        best_1U = np.zeros((1, len(self.question.relative_TC) + 1), np.float32)
        if not self.question.free:
            best_1U[0, 1:] = self.question.relative_TC[:, BLANK].cumsum()
        everywhere_12 = np.array([[0, best_1U.shape[1]]], np.int32)
        return _Prefixes(np.zeros(1, np.int64), np.zeros(1, np.float32), everywhere_12, np.zeros(1, np.int64), best_1U)

    def _children(self, parents: _Prefixes, num_sounds: int) -> _Prefixes:
        """All prefixes of one sound more that may lead to an answer; what ends there is taken down."""
        firsts = self.tree.first_children[parents.nodes_M]
        counts = self.tree.first_children[parents.nodes_M + 1] - firsts
        nodes_M, parents_M = stretches(firsts, counts), np.arange(len(counts)).repeat(counts)
        scores_M, bounds_M = np.empty((2, len(nodes_M)), np.float32)
        alive_M2 = np.empty((len(nodes_M), 2), np.int32)
        best_KU = np.empty((len(nodes_M), parents.best_KU.shape[1]), np.float32)
        classes_M = self.tree.classes_N[nodes_M]
        _extend(
            parents.best_KU, parents.rows_M[parents_M], parents.alive_M2[parents_M], classes_M,
            classes_M == self.tree.classes_N[parents.nodes_M][parents_M],
            np.minimum(self.tree.sounds_left[nodes_M], len(self._rest_KU) - 1),
            self._emissions_CT, self._rest_KU, np.float32(self.least - _ROUNDING),
            np.float32(self.question.bonus * num_sounds), self.question.free, scores_M, bounds_M, alive_M2, best_KU,
        )  # fmt: skip
        self._note(nodes_M, scores_M)
        going_on = np.flatnonzero(bounds_M > -np.inf)
        kept = _Prefixes(nodes_M[going_on], bounds_M[going_on], alive_M2[going_on], np.arange(len(going_on)), best_KU)
        # What was noted may have raised what is asked for.
        return kept.select(np.flatnonzero(kept.bounds_M >= self.least - _ROUNDING))

    def _note(self, nodes_M: np.ndarray, scores_M: np.ndarray) -> None:
        """Take down the pronunciations that end here."""
        enough = np.flatnonzero(scores_M >= self.least - _ROUNDING)
        firsts = self.tree.first_rows[nodes_M[enough]]
        counts = self.tree.first_rows[nodes_M[enough] + 1] - firsts
        rows, scores = self.tree.rows_by_node[stretches(firsts, counts)], scores_M[enough].repeat(counts)
        if self.live_R is not None:
            rows, scores = rows[self.live_R[rows]], scores[self.live_R[rows]]
        self._rows.append(rows)
        self._scores.append(scores)
        if not len(rows):
            return
        owners = self.owners_R[rows]
        np.maximum.at(self._best_N, owners, scores)
        self._leading = np.union1d(self._leading, owners)
        best = self._best_N[self._leading]
        if len(best) >= self.keep:
            self.least = max(self.least, float(np.partition(best, -self.keep)[-self.keep]))
            self._leading = self._leading[best >= self.least]

    def _narrowed(self, prefixes: _Prefixes) -> _Prefixes:
        if self.beam is None or len(prefixes.nodes_M) <= self.beam:
            return prefixes
        order_M = np.argpartition(prefixes.bounds_M, -self.beam)
        self._best_dropped = max(self._best_dropped, float(prefixes.bounds_M[order_M[: -self.beam]].max()))
        return prefixes.select(order_M[-self.beam :])


@njit(cache=True, nogil=True, error_model="numpy")
def _extend(
    best_PU, rows_M, parents_alive_M2, classes_M, repeats_M, left_M, emissions_CT, rest_KU, least, bonus, free,
    scores_M, bounds_M, alive_M2, best_KU,
):  # fmt: skip
    """The best path of each prefix after each frame, from its parent's, where it may yet lead to an answer.

    A bound never rises along a path. So from where a parent's paths are all below what is asked for, nothing is
    entered, and where a prefix's own are, too, the rest of its frames is passed over. Nobody reads paths outside of
    where they are alive.

    Args:
        best_PU, rows_M, parents_alive_M2: the paths of parents, the row of each prefix's, and where that is alive.
        classes_M, repeats_M: the last sound of each, and whether it is the parent's last as well.
        left_M: the most sounds that its subtree still adds, 0 where nothing goes on from it.
        emissions_CT: relative log-probabilities. rest_KU: the most that the frames from each on can add, by `left_M`.
        least: a path whose bound is less leads to no answer.
        bonus: of all its sounds.
        scores_M: is written: the best path, over all frames, or with `free` any.
        bounds_M: is written: its bound, or -inf where it leads nowhere.
        alive_M2, best_KU: are written: where it is alive; and the paths of those with a bound, in their order.
    """
    never, num_frames, kept = np.float32(-np.inf), emissions_CT.shape[1], 0
    blank_T = emissions_CT[BLANK]
    for prefix in range(len(rows_M)):
        parent_U, emissions_T = best_PU[rows_M[prefix]], emissions_CT[classes_M[prefix]]
        rest_U, own_U = rest_KU[left_M[prefix]], best_KU[kept]
        first, parent_end = parents_alive_M2[prefix]
        sound = best = most = bound = never
        begins, ends, frame = num_frames + 1, 0, first
        # From its own class only by way of a blank: what had been reached one frame before, and a blank.
        entered = never
        while frame < num_frames:
            if frame >= parent_end:
                entered = never
            elif not repeats_M[prefix]:
                entered = parent_U[frame]
            sound = (sound if sound > entered else entered) + emissions_T[frame]
            stayed = best + blank_T[frame]
            best = sound if sound > stayed else stayed
            frame += 1
            own_U[frame] = best
            most = best if best > most else most
            reached = rest_U[frame] + best
            bound = reached if reached > bound else bound
            if reached + bonus >= least:
                begins, ends = min(begins, frame), frame + 1
            elif frame > parent_end:
                break
            entered = parent_U[frame - 1] + blank_T[frame - 1]
        scores_M[prefix] = (most if free else best if frame == num_frames else never) + bonus
        bound += bonus
        alive_M2[prefix, 0], alive_M2[prefix, 1] = begins, ends
        if left_M[prefix] and bound >= least:
            bounds_M[prefix] = bound
            kept += 1
        else:
            bounds_M[prefix] = never
