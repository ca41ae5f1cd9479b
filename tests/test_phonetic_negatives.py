"""Phonetic negatives: other terms that sound alike, by a real phonemizer."""

import numpy as np

from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.text.pronouncing import Pronouncer
from qwen_term_retrieval.training.mining import NO_TERM
from qwen_term_retrieval.training.phonetic_negatives import phonetic_neighbours

TERMS = (
    *("atrial fibrillation", "atrial flutter", "arterial ventilation", "kubernetes", "cybernetics", "penicillin"),
    *(
        "amoxicillin",
        "thirteen",
        "thirty",
        "gradient descent",
        "radiant ascent",
        "saxophone",
        "night",
        "knight",
        "kite",
    ),
)


def neighbours(k):
    glossary = list(Glossary(TERMS))
    table = phonetic_neighbours(glossary, Pronouncer("espeak:en-us"), k)
    return {
        term.text: [glossary[row].text for row in rows if row != NO_TERM]
        for term, rows in zip(glossary, table.tolist(), strict=True)
    }


def test_the_nearest_neighbour_is_what_one_would_mishear():
    nearest = {term: found[0] for term, found in neighbours(3).items()}
    assert nearest["kubernetes"] == "cybernetics"
    assert nearest["thirty"] == "thirteen"
    assert nearest["amoxicillin"] == "penicillin"
    assert nearest["gradient descent"] == "radiant ascent"
    assert nearest["atrial fibrillation"] in ("atrial flutter", "arterial ventilation")


def test_homophones_are_no_negatives():
    found = neighbours(len(TERMS))
    assert "knight" not in found["night"]
    assert found["night"][0] == found["knight"][0] == "kite"


def test_no_term_is_its_own_neighbour_and_missing_ones_are_marked():
    glossary = list(Glossary(["thirty", "thirteen"]))
    table = phonetic_neighbours(glossary, Pronouncer("espeak:en-us"), 4)
    assert table.dtype == np.int32
    assert table.tolist() == [[1, NO_TERM, NO_TERM, NO_TERM], [0, NO_TERM, NO_TERM, NO_TERM]]


def test_terms_of_two_languages_are_neighbours_by_how_each_is_said():
    terms = [{"term": "maison", "language": "fr"}, "may zone", "mason", {"term": "raison", "language": "fr"}]
    glossary = list(Glossary(terms))
    table = phonetic_neighbours(glossary, Pronouncer("espeak:en-us", {"fr": "espeak:fr"}), 1)
    assert glossary[table[0, 0]].text == "raison"
    assert glossary[table[1, 0]].text == "mason"
