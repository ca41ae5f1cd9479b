"""What a probability promises and what it keeps, among banks of 10 to 100,000 terms.

Each clip is searched twice: with its own term in the bank, and with that term missing while its near twins stay; so
half of the clips hold a term, as `Verifier` has it. A bank of 10 or 100 terms holds the texts of a twentieth or a half
as many clips, and only these are searched in it, so that every bank is asked the same question.

A nested term ("enter" in a clip that says "please enter") was said too: it counts neither for nor against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.looks.second_look import SecondLook
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.retrieval.verifier_fitting import judged_searches
from qwen_term_retrieval.verification.fitting import JudgedCandidates, probabilities_of
from qwen_term_retrieval.verification.verifier import Verifier

SMALL_BANKS = (10, 100)
TARGETS = (0.8, 0.9, 0.95)


def judge_belief(
    retriever: TermRetriever,
    index: TermIndex,
    banks: Mapping[str, NDArray[np.int64]],
    clips: Sequence[NDArray[np.int16]],
    gold: Sequence[Sequence[int]],
) -> dict[str, dict[str, Any]]:
    """bank → threshold → answers, what they promise (their mean probability), what share of them is right, recall.

    Args:
        retriever: with a verifier.
        index: of all terms; a term's id is its row.
        banks: rows of each; the own terms come first.
        clips, gold: what is heard, and the rows of what is said.
    """
    look, verifier = retriever.second_look, retriever.verifier
    if look is None or verifier is None:
        raise ValueError("the model has no verifier: `qtr calibrate` fits one")
    place_of = {term.term_id: place for place, term in enumerate(index.terms)}
    rows = []
    for pcm, own in zip(clips, gold, strict=True):
        said = [index.terms[place_of[row]].text for row in own if row in place_of]
        about = {"text": said[0], "terms": said, "language": "en"} if said else {"text": "", "terms": []}
        rows.append({"audio": (pcm, SAMPLING_RATE), "duration": len(pcm) / SAMPLING_RATE, **about})
    parts = [index.select([place_of[row] for row in bank.tolist() if row in place_of]) for bank in banks.values()]
    judged = dict(zip(banks, judged_searches(retriever, look, rows, parts), strict=True))
    small = {str(size): _small_bank(retriever, look, index, rows, size) for size in SMALL_BANKS}
    thresholds = {"stored": verifier.threshold}
    thresholds |= {f"precision {target}": verifier.threshold_for(precision=target) for target in TARGETS}
    return {
        name: {label: _kept(verifier, of_bank, threshold) for label, threshold in thresholds.items()}
        for name, of_bank in (small | judged).items()
    }


def _small_bank(
    retriever: TermRetriever, look: SecondLook, index: TermIndex, rows: Sequence[Mapping[str, Any]], size: int
) -> JudgedCandidates:
    """Groups of clips, each among its own texts and as many others, judged together."""
    place_of = {term.text: place for place, term in enumerate(index.terms)}
    said = {place_of[term] for row in rows for term in row["terms"]}
    others = [place for place in range(len(index)) if place not in said]
    found = []
    for first in range(0, len(rows), size // 2):
        group = rows[first : first + size // 2]
        own = list(dict.fromkeys(place_of[term] for row in group for term in row["terms"]))
        drawn = np.random.default_rng(first).choice(others, size - len(own), replace=False).tolist()
        found += judged_searches(retriever, look, group, [index.select([*own, *drawn])])
    return JudgedCandidates.joined(found)


def _kept(verifier: Verifier, judged: JudgedCandidates, threshold: float) -> dict[str, float]:
    present, is_right = probabilities_of(verifier, judged)
    missing, _ = probabilities_of(verifier, judged.without_right())
    told = np.concatenate([present[present >= threshold], missing[missing >= threshold]])
    right = int((present[is_right] >= threshold).sum())
    return {
        "threshold": round(threshold, 3),
        "answers": len(told),
        "promised": round(float(told.mean()), 3) if len(told) else 1.0,
        "precision": round(right / len(told), 3) if len(told) else 1.0,
        "recall": round(right / max(judged.num_gold, 1), 3),
        "precision where all terms are there": round(right / max(int((present >= threshold).sum()), 1), 3),
        "false alarms an hour where they are missing": round(
            int((missing >= threshold).sum()) * 3600 / judged.seconds, 1
        ),
    }
