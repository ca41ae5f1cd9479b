"""Terms that stand inside one another: the one that is said comes first, whether it is the longer or the shorter."""

import pytest

from qwen_term_retrieval.models.weights.shipped import shipped_models
from qwen_term_retrieval.retrieval.retriever import TermRetriever

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shipped_models(), reason="no model came along with this checkout"),
]

NESTED = (
    ("heart failure", "congestive heart failure"),
    ("heart", "heart failure"),
    ("vein", "deep vein thrombosis"),
    ("gradient", "gradient descent"),
    ("reflux", "acid reflux disease"),
    ("twenty", "twenty seven"),
    ("random", "random forest"),
    ("Francisco", "San Francisco"),
)
SENTENCE = "please tell the patient that the second appointment was moved to the afternoon of the following Wednesday"


@pytest.fixture(scope="module")
def retriever():
    retriever = TermRetriever.from_pretrained()
    retriever.index([*dict.fromkeys(term for pair in NESTED for term in pair), SENTENCE], show_progress=False)
    return retriever


@pytest.mark.parametrize("term", [*dict.fromkeys(term for pair in NESTED for term in pair)])
@pytest.mark.parametrize("voice", ["en-us", "en-gb-x-rp"])
def test_the_one_that_is_said_comes_first(retriever, say, term, voice):
    (first,) = retriever.search((say(term, voice), 16_000), top_k=1, threshold=0.0)
    assert first.term == term


def test_a_term_inside_a_sentence_is_found_for_all_that_stands_around_it(retriever, say):
    heard = retriever.search((say("we talked about congestive heart failure after lunch"), 16_000), top_k=1)
    assert [match.term for match in heard] == ["congestive heart failure"]


def test_what_stands_inside_a_term_that_was_said_was_said_too_and_comes_after_it(retriever, say):
    heard = retriever.search((say("we talked about congestive heart failure after lunch"), 16_000))
    assert [match.term for match in heard] == ["congestive heart failure", "heart failure", "heart"]
    assert sorted((match.probability for match in heard), reverse=True) == [match.probability for match in heard]


@pytest.mark.parametrize("term", ["heart", "random forest", "congestive heart failure"])
def test_a_sentence_of_the_glossary_is_not_what_a_short_clip_says(retriever, say, term):
    found = retriever.search((say(term), 16_000), top_k=5, threshold=0.0)
    assert SENTENCE not in [match.term for match in found[:3]]
