"""The pronunciations of a glossary, searched by the sounds of a clip: `SoundIndex`, a first stage without a vector.

At most two prefix trees: a large one, and one of what was added since it was made. The two are made one when the second
has grown to a quarter of the first, so that adding a few terms to a million costs milliseconds. What is no longer a
term is left out of a search by a mask.

Shapes: T frames, C classes, K results, N terms.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qwen_term_retrieval.verification.alignment import Pairs, best_paths, forward_scores, relative_emissions
from qwen_term_retrieval.verification.prefix_tree import PrefixTree
from qwen_term_retrieval.verification.pronunciations import PronunciationBank
from qwen_term_retrieval.verification.sound_search import Question, merge_silence, nearest_pronunciations

# About the logarithm of the number of sounds of a language: what it says for a term that one of its sounds was heard
# where chance might have put any.
SOUND_BONUS = 4.0
_MOST_PREFIXES = 5000
# A class that is less likely than this in a frame counts as this: the search adds up finite numbers only.
_LEAST = -50.0
_REBUILD_AT = 4


@dataclass(frozen=True, eq=False)
class SoundHits:
    """The K best terms of a clip, best first; fewer where the clip has too few frames to say more, silence merged.

    terms_K: int64, owners of the pronunciations. scores_K: float32. starts_K, ends_K: int64, the first frame of the
    first sound and the frame after the last. exact: whether no prefix was dropped that could have led to a better one.
    """

    terms_K: np.ndarray
    scores_K: np.ndarray
    starts_K: np.ndarray
    ends_K: np.ndarray
    exact: bool


class SoundIndex:
    """Pronunciations in prefix trees.

    Args:
        num_classes: of the phoneme head, with the blank.

    Example:
        >>> index = SoundIndex(num_classes=3)
        >>> index.add(PronunciationBank.of([[[1, 2]], [[2, 1]], [[1]]], num_classes=3))
        >>> log_probs_TC = torch.tensor([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]).log()
        >>> index.search(log_probs_TC, top_k=2).terms_K.tolist()
        [0, 2]
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self._parts: list[tuple[PronunciationBank, PrefixTree]] = []
        self._owner_of: np.ndarray | None = None

    @classmethod
    def of_parts(
        cls,
        num_classes: int,
        parts: Sequence[tuple[PronunciationBank, PrefixTree]],
        owner_of: np.ndarray | None = None,
    ) -> SoundIndex:
        """An index of banks whose trees there are already.

        Args:
            owner_of: int64, what each owner is called by whoever searches, -1 where it is not to be found; None: as in
                the banks.
        """
        index = cls(num_classes)
        index._parts = [(bank, tree) for bank, tree in parts if len(bank)]
        index._owner_of = owner_of
        return index

    def __len__(self) -> int:
        return sum(len(bank) for bank, _ in self._parts)

    def __repr__(self) -> str:
        return f"<SoundIndex of {len(self)} pronunciations in {len(self._parts)} trees>"

    @property
    def bank(self) -> PronunciationBank:
        """All pronunciations, in the order in which they were added."""
        banks = [part for part, _ in self._parts] or [PronunciationBank.of([], self.num_classes)]
        return functools.reduce(PronunciationBank.join, banks)

    def add(self, bank: PronunciationBank) -> None:
        """Add pronunciations; owners are the caller's numbers of terms, old and new.

        Raises:
            ValueError: the bank is of a head with another number of classes.
        """
        if bank.num_classes != self.num_classes:
            raise ValueError(f"pronunciations of {bank.num_classes} classes do not fit a head of {self.num_classes}")
        large = self._parts[:1]
        for recent, _ in self._parts[1:]:
            bank = recent.join(bank)
        if large and len(bank) * _REBUILD_AT >= len(large[0][0]):
            bank, large = large[0][0].join(bank), []
        if len(bank):
            self._parts = [*large, (bank, PrefixTree.of(bank))]

    def search(
        self,
        log_probs_TC: torch.Tensor,
        top_k: int = 10,
        *,
        free: bool = False,
        sound_bonus: float = SOUND_BONUS,
        live_N: np.ndarray | None = None,
        beam: int | None = _MOST_PREFIXES,
    ) -> SoundHits:
        """The `top_k` terms that a clip's frames fit best.

        The best paths of all pronunciations, in frames of which silence is merged, choose twice as many terms; these
        are scored again in all frames, by `forward_scores`; with `free`, plus `sound_bonus` a sound.

        Args:
            log_probs_TC: natural logarithms of each frame's probabilities, on any device; the search runs on the CPU.
            free: the term may be a part of the clip.
            sound_bonus: with `free`, what a score gains by every sound of the term. Without it, one sound that was
                heard fits as well as ten; the sharper a head, the more a sound that it hears is worth.
            live_N: bool, by owner: the terms that may be found; None for all.
            beam: the most prefixes of a number of sounds that are followed; None for an exact search at any cost, which
                on noise is that of all pronunciations.

        Raises:
            ValueError: `top_k` or `beam` below 1, log-probabilities of another number of classes, NaN or above 0, or
                a mask that does not reach to the last owner.
        """
        self._check(log_probs_TC, top_k, beam)
        if self._owner_of is not None:
            live_N = self._owner_of >= 0 if live_N is None else live_N & (self._owner_of >= 0)
        log_probs_TC = log_probs_TC.detach().float().cpu()
        relative_TC = relative_emissions(log_probs_TC)[0].clamp_(min=_LEAST).numpy()
        question = Question(merge_silence(relative_TC), free, sound_bonus if free else 0.0, beam)
        found, exact = self._candidates(question, 2 * top_k, live_N)
        num_frames_B = np.array([len(log_probs_TC)])
        pairs = Pairs.of_whole_clips(np.arange(len(found)), np.zeros(len(found), np.int64), num_frames_B)
        scores_P = forward_scores(log_probs_TC[None], found, pairs, free=free).numpy()
        scores_P += np.float32(question.bonus) * found.lengths.astype(np.float32)
        order_K = np.argsort(-scores_P, kind="stable")[:top_k]
        paths = best_paths(log_probs_TC[None], found, pairs.select(order_K), free=free)
        terms_K = found.owners_R[order_K].astype(np.int64)
        terms_K = terms_K if self._owner_of is None else self._owner_of[terms_K]
        return SoundHits(terms_K, scores_P[order_K], paths.starts_P, paths.ends_P, exact)

    def _check(self, log_probs_TC: torch.Tensor, top_k: int, beam: int | None) -> None:
        if log_probs_TC.ndim != 2 or log_probs_TC.shape[1] != self.num_classes:
            raise ValueError(f"expected log-probabilities (T, {self.num_classes}), not {tuple(log_probs_TC.shape)}")
        if top_k < 1 or (beam is not None and beam < 1):
            raise ValueError(f"top_k and beam must be at least 1, not {top_k} and {beam}")

    def _candidates(
        self, question: Question, num_terms: int, live_N: np.ndarray | None
    ) -> tuple[PronunciationBank, bool]:
        """The best pronunciation of each of the best terms, and whether none better was passed over."""
        banks, scores, exact = [PronunciationBank.of([], self.num_classes)], [np.zeros(0, np.float32)], True
        for bank, tree in self._parts:
            answer = nearest_pronunciations(
                question, tree, num_terms, owners_R=bank.owners_R, live_R=_live_rows(bank, live_N)
            )
            banks.append(bank.select(answer.rows_R))
            scores.append(answer.scores_R)
            exact = exact and answer.exact
        found, scores_R = banks[0], np.concatenate(scores)
        for bank in banks[1:]:
            found = found.join(bank)
        order_R = np.argsort(-scores_R, kind="stable")
        _, first = np.unique(found.owners_R[order_R], return_index=True)
        return found.select(order_R[np.sort(first)[:num_terms]]), exact

    def save(self, folder: Path) -> None:
        """Write `sounds_0/` and, after additions, `sounds_1/` into a folder that has neither.

        The caller sees to it that the folder appears whole or not at all.
        """
        for number, (bank, tree) in enumerate(self._parts):
            part = folder / f"sounds_{number}"
            part.mkdir()
            bank.save(part)
            tree.save(part)

    @classmethod
    def open(cls, folder: Path, num_classes: int) -> SoundIndex:
        """Open what `save` wrote, nothing where the index was empty; the arrays stay on disk until they are searched.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: damaged, or of a head with another number of classes; names the folder.
        """
        index = cls(num_classes)
        num_parts = 2 if (folder / "sounds_1").exists() else 1 if (folder / "sounds_0").exists() else 0
        for part in (folder / f"sounds_{number}" for number in range(num_parts)):
            bank, tree = PronunciationBank.open(part), PrefixTree.open(part)
            if bank.num_classes != num_classes or len(tree.nodes_R) != len(bank):
                raise ValueError(
                    f"{part}: {len(bank)} pronunciations of {bank.num_classes} classes, in a tree of "
                    f"{len(tree.nodes_R)}, for a head of {num_classes}. Make the index again"
                )
            index._parts.append((bank, tree))
        return index


def _live_rows(bank: PronunciationBank, live_N: np.ndarray | None) -> np.ndarray | None:
    if live_N is None:
        return None
    if len(live_N) <= bank.owners_R.max():
        raise ValueError(f"the mask of {len(live_N)} terms does not reach to term {bank.owners_R.max()}")
    return live_N[bank.owners_R]
