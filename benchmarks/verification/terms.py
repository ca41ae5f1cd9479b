"""Banks of real terms, pronounced: the word lists' entries, and what is cut out of WordNet's example sentences."""

from __future__ import annotations

from itertools import chain

import numpy as np

from qwen_term_retrieval.text.pronouncing import Pronouncer
from qwen_term_retrieval.text.wordlists import (
    computing_terms,
    medical_terms,
    place_names,
    sayable_terms,
    wordnet_examples,
    wordnet_terms,
)

PHONEMIZER = "espeak:en-us"
_SEED = 0


def real_terms(number: int) -> list[str]:
    """So many terms, drawn from all lists; beyond these, from stretches of two to ten words of example sentences.

    Raises:
        ValueError: there are not so many.
    """
    terms = sayable_terms(chain(wordnet_terms(), medical_terms(), place_names(), computing_terms()))
    if len(terms) < number:
        sentences = [example.split() for example in wordnet_examples()]
        stretches = (
            " ".join(words[start : start + length])
            for length in range(2, 11)
            for words in sentences
            for start in range(len(words) - length + 1)
        )
        terms = sayable_terms(chain(terms, stretches), max_words=10)
    if len(terms) < number:
        raise ValueError(f"{number} terms wanted, there are {len(terms)}")
    return [terms[row] for row in np.random.default_rng(_SEED).permutation(len(terms))[:number]]


def pronounced(terms: list[str]) -> tuple[list[str], list[list[list[str]]], tuple[str, ...]]:
    """The terms that have a sound, their pronunciations, and the alphabet of these."""
    pronouncer = Pronouncer(PHONEMIZER, several=False)
    said = pronouncer.pronunciations(terms)
    with_sound = [row for row, ways in enumerate(said) if ways[0]]
    return [terms[row] for row in with_sound], [said[row] for row in with_sound], pronouncer.symbols
