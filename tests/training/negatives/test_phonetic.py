"""Phonetic negatives: other terms that sound alike, by a real phonemizer."""

import datasets
import numpy as np

from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.text.pronouncing import Pronouncer
from qwen_term_retrieval.training.data.clips import TrainingClips, annotate_terms
from qwen_term_retrieval.training.negatives.nearest import NO_TERM
from qwen_term_retrieval.training.negatives.phonetic import phonetic_neighbours, sounding_alike, sounds_of

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
    table = phonetic_neighbours(sounds_of(glossary, Pronouncer("espeak:en-us")), k)
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
    table = phonetic_neighbours(sounds_of(glossary, Pronouncer("espeak:en-us")), 4)
    assert table.dtype == np.int32
    assert table.tolist() == [[1, NO_TERM, NO_TERM, NO_TERM], [0, NO_TERM, NO_TERM, NO_TERM]]


def test_terms_of_two_languages_are_neighbours_by_how_each_is_said():
    terms = [{"term": "maison", "language": "fr"}, "may zone", "mason", {"term": "raison", "language": "fr"}]
    glossary = list(Glossary(terms))
    table = phonetic_neighbours(sounds_of(glossary, Pronouncer("espeak:en-us", {"fr": "espeak:fr"})), 1)
    assert glossary[table[0, 0]].text == "raison"
    assert glossary[table[1, 0]].text == "mason"


def alike(terms, labels, text, k=3):
    """What a clip that says `text`, with these labels, is told from."""
    glossary = Glossary(terms)
    rows = datasets.Dataset.from_dict(
        {"audio": [0], "key": ["a"], "text": [text], "terms": [labels], "duration": [1.0]}
    )
    clips = TrainingClips(annotate_terms(rows, glossary))
    (found,) = sounding_alike(clips, glossary, Pronouncer("espeak:en-us"), k).tolist()
    return [glossary[row].text for row in found if row != NO_TERM]


def test_what_sounds_like_anything_said_in_the_clip_is_no_negative_of_it():
    terms = ["write", "ride", "right", "sepsis"]
    assert alike(terms, ["ride"], "ride")[0] == "write"
    # "right" comes near as a neighbour of "ride", and sounds like "write".
    assert alike(terms, ["write", "ride"], "write ride") == ["sepsis"]
    # Unlabelled.
    assert alike(terms, ["ride"], "write ride") == ["sepsis"]
    # By another name.
    named = [{"term": "put down", "aliases": ["write"]}, *terms[1:]]
    assert "right" in alike(named, ["ride"], "ride")
    assert "right" not in alike(named, ["write", "ride"], "write ride")
