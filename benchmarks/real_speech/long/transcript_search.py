"""The peer in longer speech: a transcript, then the terms that are nearest to any run of its words.

A term scores as high as the run of up to five words that it is nearest to, by the measures of `baselines.py`. Hundreds
of terms stand word for word in the transcripts and would tie; of equals the longer is surer, which only helps: what is
heard wrong is a short word. The transcriber is given every clip by itself, at its true borders, in the joined
recordings too, and so hears no pause and never cuts a word: more than a user could give it. It has no times within a
clip.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks.real_speech.baselines import Matcher
from benchmarks.real_speech.long.recordings import Place
from benchmarks.real_speech.spelling import letters_of, spell_out
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.text.spellings import term_id

MAX_RUN_WORDS = 5
_RUNS_AT_ONCE = 64
_TIE_BREAK, _LONG_TERM = 1e-3, 50  # the bonus of a term of so many letters


def runs_of_words(transcript: str) -> list[str]:
    """Every run of up to five words, spelled out; the transcript itself where it has none.

    >>> runs_of_words("Press 1!")
    ['press', 'press one', 'one']
    """
    words = spell_out(transcript).split()
    ends = ((first, end) for first in range(len(words)) for end in range(first + 1, len(words) + 1))
    runs = [" ".join(words[first:end]) for first, end in ends if end - first <= MAX_RUN_WORDS]
    return runs or [""]


def best_scores(
    matcher: Matcher, terms: Sequence[str], transcripts: Sequence[str], measure: str, label: str = "runs of words"
) -> NDArray[np.float32]:
    """(Q, N): the score of each of a matcher's terms against the nearest run of each transcript. Each run is scored
    once, however many transcripts hold it.
    """
    holders: dict[str, list[int]] = {}
    for row, transcript in enumerate(transcripts):
        for run in dict.fromkeys(runs_of_words(transcript)):
            holders.setdefault(run, []).append(row)
    runs = list(holders)
    best_QN = np.zeros((len(transcripts), len(terms)), np.float32)
    for first in tqdm(range(0, len(runs), _RUNS_AT_ONCE), desc=label, unit="block"):
        block = runs[first : first + _RUNS_AT_ONCE]
        for run, scores_N in zip(block, matcher.scores(block, measure), strict=True):
            for row in holders[run]:
                np.maximum(best_QN[row], scores_N, out=best_QN[row])
    length_N = np.array([min(len(letters_of(term)), _LONG_TERM) for term in terms], np.float32)
    best_QN += np.float32(_TIE_BREAK / _LONG_TERM) * length_N
    return best_QN


def nearest_terms(scores_N: NDArray[np.float32], terms: Sequence[str], place: Place, top_k: int) -> list[TermMatch]:
    """The `top_k` best terms of a transcript as matches that span its place."""
    count = min(top_k, len(scores_N))
    best = np.argpartition(-scores_N, count - 1)[:count]
    return [
        TermMatch(terms[row], float(scores_N[row]), place.start, place.end, term_id(terms[row]))
        for row in best[np.argsort(-scores_N[best], kind="stable")].tolist()
    ]
