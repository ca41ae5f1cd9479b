"""Term banks of the real-speech benchmark: the prompts' own texts, and the same among thousands of other terms.

Distractors are WordNet lemmas and medical words. None is spelled like a prompt's text, whatever its case, spacing,
punctuation or way of writing numbers ("x-ray" is no distractor of "xray", nor "30th" of "thirtieth"). Homophones
stay in: they are wrong. The samples are nested, so a larger bank can only be harder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz, process

from benchmarks.real_speech.spelling import letters_of, spell_out

NUM_DISTRACTORS = {"own": 0, "+10k": 10_000, "+100k": 100_000}
HARD = "hard 100k"
_SEED = 20261121


@dataclass(frozen=True)
class TermBanks:
    """Every term of every bank once, and for each bank the rows that belong to it; own terms are the first rows."""

    terms: list[str]
    rows: Mapping[str, NDArray[np.int64]]
    num_own: int

    def gold_rows(self, texts: Sequence[str]) -> list[list[int]]:
        """For each clip's text, its row; the same row number in every bank, because own terms come first."""
        row_of = {spell_out(term): row for row, term in enumerate(self.terms[: self.num_own])}
        return [[row_of[spell_out(text)]] for text in texts]


def make_banks(
    texts: Sequence[str],
    others: Sequence[str],
    num_distractors: Mapping[str, int] = NUM_DISTRACTORS,
    *,
    hard: bool = True,
) -> TermBanks:
    """Banks of `texts` and, of `others`, a sample as large as each name says; and if `hard`, which takes a minute,
    `HARD`: as many as the largest sample, nearest in spelling to any of `texts`.
    """
    own = distinct_terms(texts)
    pool = distinct_terms(others, unlike=own)
    largest = max(num_distractors.values())
    if len(pool) < largest:
        raise ValueError(f"{largest} distractors wanted, but only {len(pool)} terms are left to draw from")
    order = np.random.default_rng(_SEED).permutation(len(pool))
    hardest = np.argsort(-nearness_in_spelling(own, pool), kind="stable")[:largest] if hard else order[:0]

    own_rows = np.arange(len(own))
    used = np.union1d(order[:largest], hardest)
    row_of = np.full(len(pool), -1)
    row_of[used] = len(own) + np.arange(len(used))
    rows = {name: np.concatenate([own_rows, row_of[order[:count]]]) for name, count in num_distractors.items()}
    if hard:
        rows[HARD] = np.concatenate([own_rows, row_of[hardest]])
    return TermBanks([*own, *(pool[index] for index in used)], rows, len(own))


def distinct_terms(terms: Sequence[str], *, unlike: Sequence[str] = ()) -> list[str]:
    """The first spelling of each term, without those that are spelled like one of `unlike`."""
    taken = {letters_of(text) for text in unlike}
    kept: dict[str, str] = {}
    for term in terms:
        if letters_of(term) not in taken:
            kept.setdefault(spell_out(term), term)
    return list(kept.values())


def nearness_in_spelling(own: Sequence[str], pool: Sequence[str], *, block: int = 20_000) -> NDArray[np.float32]:
    """(len(pool),): each term's highest edit ratio with any of `own`, from 0 to 100."""
    spelled_own = [spell_out(text) for text in own]
    spelled_pool = [spell_out(term) for term in pool]
    nearest = [
        process.cdist(spelled_pool[first : first + block], spelled_own, scorer=fuzz.ratio, workers=-1).max(axis=1)
        for first in range(0, len(pool), block)
    ]
    return np.concatenate(nearest)
