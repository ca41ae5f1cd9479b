"""Ranks of terms said among a bank of terms, and the numbers that they make.

`evaluate_vectors` works on plain tensors: whoever has vectors of clips and terms, on however many ranks they were
made, gathers them and gets the same numbers.

A pair is a (clip, term said in it). Its rank is one plus the number of *wrong* terms that score at least as high: the
clip's other terms do not count, nor do terms whose words stand in its text unlabelled.

Shapes: P clips, W windows, N spellings of the bank, D embedding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_term_retrieval.evaluation.ranking import (
    bootstrap_interval,
    mean_reciprocal_rank,
    rank_of_each_gold,
    recall_at_k,
)
from qwen_term_retrieval.retrieval.matches import TermMatch

RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class RankedPairs:
    """Ranks of (clip, term) pairs: `ranks` int64 from 1, and the term's id, of each pair."""

    ranks: NDArray[np.int64]
    term_ids: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence[RankedPairs]) -> RankedPairs:
        return cls(np.concatenate([part.ranks for part in parts]), np.concatenate([part.term_ids for part in parts]))


def rank_pairs(
    audio_PD: torch.Tensor,
    gold: Sequence[Sequence[int]],
    bank_ND: torch.Tensor,
    bank_ids: Sequence[int],
    *,
    neutral: Sequence[Sequence[int]] | None = None,
    window_mask: torch.Tensor | None = None,
) -> RankedPairs:
    """Rank every term said in every clip; clips without one are left out.

    Args:
        audio_PD: (P, D), or (P, W, D) with `window_mask` (P, W).
        gold: ids of the terms said in each clip.
        bank_ND: vectors of the bank's spellings.
        bank_ids: the term of each spelling; aliases share one. Each spelling of a wrong term counts.
        neutral: ids that are neither right nor wrong for each clip.

    Raises:
        ValueError: a term said is not in the bank; shapes that do not fit; vectors that are not finite.
    """
    if len(bank_ids) != len(bank_ND) or len(gold) != len(audio_PD):
        raise ValueError(
            f"{len(bank_ND)} bank vectors have {len(bank_ids)} ids and {len(audio_PD)} clips have {len(gold)} lists of "
            "terms: there must be one for each"
        )
    rows_of_id: dict[int, list[int]] = defaultdict(list)
    for row, identity in enumerate(bank_ids):
        rows_of_id[int(identity)].append(row)
    _check_gold_in_bank(gold, rows_of_id)
    clips = [clip for clip, ids in enumerate(gold) if len(ids)]
    if not clips:
        return RankedPairs(np.zeros(0, np.int64), np.zeros(0, np.int64))
    wanted = [list(dict.fromkeys(gold[clip])) for clip in clips]
    excused = [
        [identity for identity in neutral[clip] if identity in rows_of_id and identity not in gold[clip]]
        if neutral is not None
        else []
        for clip in clips
    ]
    ids = [[*right, *dict.fromkeys(rest)] for right, rest in zip(wanted, excused, strict=True)]
    rows = [[row for identity in clip_ids for row in rows_of_id[identity]] for clip_ids in ids]
    ranks_of_rows = rank_of_each_gold(
        audio_PD[clips], bank_ND, rows, window_mask=None if window_mask is None else window_mask[clips]
    )
    ranks, identities, first = [], [], 0
    for clip_ids, right in zip(ids, wanted, strict=True):
        for position, identity in enumerate(clip_ids):
            count = len(rows_of_id[identity])
            if position < len(right):
                ranks.append(int(ranks_of_rows[first : first + count].min()))
                identities.append(int(identity))
            first += count
    return RankedPairs(np.array(ranks, np.int64), np.array(identities, np.int64))


def rank_in_matches(
    found: Sequence[Sequence[TermMatch]],
    gold: Sequence[Sequence[int]],
    neutral: Sequence[Sequence[int]],
    num_terms: int,
) -> RankedPairs:
    """Rank every term said in every clip among its verified matches.

    As `rank_pairs`, ties counting against; a term that was not proposed, and so never listened to again, stands last.

    Args:
        found: the matches of each clip.
        gold, neutral: see `rank_pairs`.
        num_terms: of the bank.
    """
    ranks, identities = [], []
    for matches, right, excused in zip(found, gold, neutral, strict=True):
        confidence = {match.term_id: match.confidence for match in matches}
        wrong = np.array([each for term, each in confidence.items() if term not in {*right, *excused}])
        for identity in dict.fromkeys(right):
            own = confidence.get(identity)
            ranks.append(num_terms if own is None else 1 + int((wrong >= own).sum()))
            identities.append(int(identity))
    return RankedPairs(np.array(ranks, np.int64), np.array(identities, np.int64))


def _check_gold_in_bank(gold: Sequence[Sequence[int]], rows_of_id: Mapping[int, Any]) -> None:
    for clip, ids in enumerate(gold):
        for identity in ids:
            if int(identity) not in rows_of_id:
                raise ValueError(f"clip {clip}: its term {identity} is not in the bank; add every term that is said")


def ranking_metrics(
    pairs: RankedPairs,
    seen_ids: Collection[int] | None = None,
    ks: Sequence[int] = RECALL_AT,
    *,
    intervals: bool = True,
) -> dict[str, float]:
    """`recall@k`, `mrr` and `pairs`; with `seen_ids` also of seen and unseen terms (`recall@10_unseen`).

    With `intervals`, each recall has bootstrap 95 % bounds over pairs: `recall@10_low`, `recall@10_high`.
    """
    groups = {"": np.ones(len(pairs.ranks), np.bool_)}
    if seen_ids is not None:
        seen_P = np.isin(pairs.term_ids, np.fromiter(seen_ids, np.int64))
        groups |= {"_seen": seen_P, "_unseen": ~seen_P}
    metrics: dict[str, float] = {}
    for suffix, chosen_P in groups.items():
        ranks = pairs.ranks[chosen_P]
        metrics[f"pairs{suffix}"] = len(ranks)
        if not len(ranks):
            continue
        metrics[f"mrr{suffix}"] = mean_reciprocal_rank(ranks)
        for k in ks:
            metrics[f"recall@{k}{suffix}"] = recall_at_k(ranks, k)
            if intervals:
                low, high = bootstrap_interval(ranks <= k)
                metrics |= {f"recall@{k}{suffix}_low": low, f"recall@{k}{suffix}_high": high}
    return metrics


def evaluate_vectors(
    audio_PD: torch.Tensor,
    gold: Sequence[Sequence[int]],
    bank_ND: torch.Tensor,
    bank_ids: Sequence[int],
    seen_ids: Collection[int] | None = None,
    ks: Sequence[int] = RECALL_AT,
    *,
    neutral: Sequence[Sequence[int]] | None = None,
    window_mask: torch.Tensor | None = None,
    intervals: bool = True,
) -> dict[str, float]:
    """Recall@k and MRR from vectors; see `rank_pairs` and `ranking_metrics`.

    Across ranks: gather clips and their lists in any order, then call this on each; the numbers do not depend on how
    many there were.
    """
    pairs = rank_pairs(audio_PD, gold, bank_ND, bank_ids, neutral=neutral, window_mask=window_mask)
    return ranking_metrics(pairs, seen_ids, ks, intervals=intervals)
