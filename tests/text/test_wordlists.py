import pytest

from qwen_term_retrieval.storage.packages import PackageError
from qwen_term_retrieval.text import wordlists
from qwen_term_retrieval.text.spellings import normalize_term


def read(function):
    try:
        return function()
    except PackageError as error:
        pytest.skip(f"the package registry cannot be reached: {error}")


@pytest.mark.parametrize(
    ("function", "at_least", "known"),
    [
        (wordlists.wordnet_terms, 140_000, ["New York", "atrial fibrillation", "run out", "galore"]),
        (wordlists.wordnet_examples, 45_000, ["he liked vanilla ice cream"]),
        (wordlists.medical_terms, 85_000, ["amoxicillin", "bronchioli"]),
        (wordlists.computing_terms, 13_000, ["linked list", "Bourne shell", "HTTP"]),
        (wordlists.place_names, 60_000, ["Ulm", "Vanuatu", "Alaska", "Roßleben"]),
    ],
)
def test_a_word_list_holds_many_distinct_sayable_terms(function, at_least, known):
    terms = read(function)
    assert len(terms) >= at_least
    assert set(known) <= set(terms)
    normalized = [normalize_term(term) for term in terms]
    assert len(set(normalized)) == len(terms)
    assert all(normalized)
    assert not [term for term in terms if "_" in term or "/" in term[:1] or term.endswith("(a)")]


def test_what_cannot_be_said_or_repeats_or_is_long_is_left_out():
    raw = ["linked list", "Linked  List", "--c-=c-c--", "$1", "42", "", "a b c", "C++"]
    assert wordlists.sayable_terms(raw, max_words=2) == ["linked list", "C++"]
