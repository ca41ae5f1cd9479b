"""Search by sounds: the best paths of all pronunciations of a prefix tree against the frames of one clip.

Prefixes are scored level by level, all prefixes of one number of sounds at once, frame by frame: what a prefix has
scored after each frame follows from what its parent has. A prefix has a bound, which nothing that begins with it can
exceed: its score after some frame, and for the frames that follow the best that any sounds could score there, as many
as its subtree still adds. A first pass with a narrow beam, by bound, finds `keep` good terms; the second drops only
prefixes whose bound is below the worst of these, so that the answer is that of scoring every pronunciation. On speech
a few thousand prefixes a level are left of any number; on noise, where everything fits badly, nearly all. `beam`
limits them: a term may then be lost whose beginning was heard so badly that so many others fit better, and the answer
says whether that can have happened.

Where the head is nearly certain of silence, neighbouring frames become one (`merge_silence`), which halves the frames.
Scores are relative to each frame's likeliest class, whole or with a free start and end, as `alignment.py` says.

Shapes: T frames, U = T + 1 (after so many frames), C classes, K kinds of bounds, M prefixes, R pronunciations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwen_term_retrieval.verification.prefix_tree import PrefixTree
from qwen_term_retrieval.verification.pronunciations import BLANK, stretches

_CERTAIN = 0.99
# What a pass that only looks for good terms may keep a level.
_NARROW = 200
# Prefixes whose children are scored at once, so that their frames stay in a core's cache.
_BLOCK = 2048
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
    question: Question, tree: PrefixTree, keep: int, *, live_R: np.ndarray | None = None, least: float = _LEAST
) -> Answer:
    """The `keep` best pronunciations, and those as good, as far as the clip has frames to say them.

    Args:
        live_R: bool, False for pronunciations that are not to be found.
        least: those that score less are left out.
    """
    rest_UK = _rest(question, int(tree.sounds_left[0]))
    if len(tree) > _NARROW:
        least = _Pass(question, tree, rest_UK, keep, live_R, least, _NARROW).run().least
    return _Pass(question, tree, rest_UK, keep, live_R, least, question.beam).run()


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
    """Prefixes of one number of sounds, and what the best path of each scores after 0 to T frames, float32 (U, M)."""

    nodes_M: np.ndarray
    best_UM: np.ndarray

    def select(self, prefixes: np.ndarray) -> _Prefixes:
        # By `take`, here and below: `[:, prefixes]` would lay the frames of a prefix side by side.
        return _Prefixes(self.nodes_M[prefixes], self.best_UM.take(prefixes, axis=1))

    def between(self, first: int, end: int) -> _Prefixes:
        return _Prefixes(self.nodes_M[first:end], self.best_UM[:, first:end])

    @staticmethod
    def join(parts: list[_Prefixes]) -> _Prefixes:
        if len(parts) == 1:
            return parts[0]
        nodes_M = np.concatenate([part.nodes_M for part in parts])
        return _Prefixes(nodes_M, np.concatenate([part.best_UM for part in parts], axis=1))


class _Pass:
    """One walk down a tree, from level to level."""

    def __init__(
        self, question: Question, tree: PrefixTree, rest_UK: np.ndarray, keep: int,
        live_R: np.ndarray | None, least: float, beam: int | None,
    ):  # fmt: skip
        self.question, self.tree, self.rest_UK, self.beam = question, tree, rest_UK, beam
        self.live_R, self.least = live_R, least
        self._best_K = np.full(keep, -np.inf, np.float32)
        self._rows, self._scores = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        self._best_dropped = -np.inf

    def run(self) -> Answer:
        level, num_sounds = self._root(), 0
        while len(level.nodes_M):
            num_sounds += 1
            parts, bounds = [], []
            for first in range(0, len(level.nodes_M), _BLOCK):
                block = self._children(level.between(first, first + _BLOCK), num_sounds)
                self._note(block, num_sounds)
                bounds_M = self._bounds(block, num_sounds)
                going_on = np.flatnonzero(bounds_M >= self.least - _ROUNDING)
                parts.append(block.select(going_on))
                bounds.append(bounds_M[going_on])
            level = self._narrowed(_Prefixes.join(parts), np.concatenate(bounds))
        rows_R, scores_R = np.concatenate(self._rows), np.concatenate(self._scores)
        enough = scores_R >= self.least - _ROUNDING
        exact = self._best_dropped < self.least - _ROUNDING
        return Answer(rows_R[enough], scores_R[enough], self.least, exact)

    def _root(self) -> _Prefixes:
        start_U1 = np.zeros((len(self.question.relative_TC) + 1, 1), np.float32)
        if not self.question.free:
            start_U1[1:, 0] = self.question.relative_TC[:, BLANK].cumsum()
        return _Prefixes(np.zeros(1, np.int64), start_U1)

    def _children(self, parents: _Prefixes, num_sounds: int) -> _Prefixes:
        """All prefixes of one sound more."""
        relative_TC, blank_T = self.question.relative_TC, self.question.relative_TC[:, BLANK]
        firsts = self.tree.first_children[parents.nodes_M]
        counts = self.tree.first_children[parents.nodes_M + 1] - firsts
        nodes_M, parent_M = stretches(firsts, counts), np.arange(len(counts)).repeat(counts)
        classes_M = self.tree.classes_N[nodes_M]
        # So many sounds need as many frames: from the first frame that can have this one, what it is entered from.
        first = num_sounds - 1
        sound_FM = parents.best_UM[first:-1].take(parent_M, axis=1)
        again = np.flatnonzero(classes_M == self.tree.classes_N[parents.nodes_M][parent_M])
        if len(again):
            # From its own class only by way of a blank: what had been reached one frame before, and a blank.
            sound_FM[1:, again] = parents.best_UM[first:-2, parent_M[again]] + blank_T[first:-1, None]
            sound_FM[:1, again] = -np.inf
        emitted_FM = relative_TC[first:].take(classes_M, axis=1)
        best_UM = np.empty((len(relative_TC) + 1, len(nodes_M)), np.float32)
        best_UM[:num_sounds] = before_M = -np.inf
        for frame, sound_M in enumerate(sound_FM):
            np.maximum(sound_M, before_M, out=sound_M)
            sound_M += emitted_FM[frame]
            before, after = best_UM[first + frame], best_UM[first + frame + 1]
            np.add(before, blank_T[first + frame], out=after)
            np.maximum(after, sound_M, out=after)
            before_M = sound_M
        return _Prefixes(nodes_M, best_UM)

    def _note(self, prefixes: _Prefixes, num_sounds: int) -> None:
        """Take down the pronunciations that end here."""
        firsts = self.tree.first_rows[prefixes.nodes_M]
        counts = self.tree.first_rows[prefixes.nodes_M + 1] - firsts
        scores_M = prefixes.best_UM.max(axis=0) if self.question.free else prefixes.best_UM[-1]
        scores_M = scores_M + np.float32(self.question.bonus * num_sounds)
        counts[scores_M < self.least - _ROUNDING] = 0
        rows, scores = self.tree.rows_by_node[stretches(firsts, counts)], scores_M.repeat(counts)
        if self.live_R is not None:
            rows, scores = rows[self.live_R[rows]], scores[self.live_R[rows]]
        self._rows.append(rows)
        self._scores.append(scores)
        keep = len(self._best_K)
        self._best_K = np.partition(np.concatenate([self._best_K, scores]), -keep)[-keep:]
        self.least = max(self.least, float(self._best_K[0]))

    def _bounds(self, prefixes: _Prefixes, num_sounds: int) -> np.ndarray:
        left_M = np.minimum(self.tree.sounds_left[prefixes.nodes_M], self.rest_UK.shape[1] - 1)
        bounds_VM = self.rest_UK[num_sounds:].take(left_M, axis=1)
        bounds_VM += prefixes.best_UM[num_sounds:]
        bounds_M = bounds_VM.max(axis=0, initial=-np.inf) + np.float32(self.question.bonus * num_sounds)
        # What has no children leads nowhere.
        bounds_M[left_M == 0] = -np.inf
        return bounds_M

    def _narrowed(self, prefixes: _Prefixes, bounds_M: np.ndarray) -> _Prefixes:
        if self.beam is None or len(bounds_M) <= self.beam:
            return prefixes
        order_M = np.argpartition(bounds_M, -self.beam)
        self._best_dropped = max(self._best_dropped, float(bounds_M[order_M[: -self.beam]].max()))
        return prefixes.select(order_M[-self.beam :])
