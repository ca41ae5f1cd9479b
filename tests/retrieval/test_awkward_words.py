"""Words that people complain about, said by espeak-ng and searched with the default model that came along."""

import pytest

from qwen_term_retrieval.models.weights.shipped import shipped_models
from qwen_term_retrieval.retrieval.retriever import TermRetriever

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shipped_models(), reason="no model came along with this checkout"),
]

OTHERS = ["atrial fibrillation", "Kubernetes", "San Francisco", "gradient descent"]


@pytest.fixture(scope="module")
def retriever():
    return TermRetriever.from_pretrained()


@pytest.fixture
def search(retriever, say):
    def search(terms, text, **settings):
        retriever.index([*terms, *OTHERS], show_progress=False)
        return retriever.search(say(text), sampling_rate=16_000, **settings)

    return search


@pytest.mark.parametrize(
    ("terms", "text"),
    [
        (["CRAN", "Snyk", "Redis", "PPM", "RFD"], "I ran to sync the ready parts"),
        (["EG-1"], "I want to egg on the crowd"),
        (["Azure"], "do it as you like"),
    ],
)
def test_what_sounds_a_little_like_a_term_is_no_term(search, terms, text):
    assert search(terms, text) == []


@pytest.mark.parametrize(
    ("term", "text"),
    [
        ("Phi-4-mini", "phi four mini"),
        ("RAG", "we use rag here"),
        ("COVID‑19", "covid nineteen"),
        ("AT&T", "A.T. and T."),
        ("C++", "see plus plus"),
        ("IL-6", "I.L. six is high"),
        ("IL-6", "ill six is high"),
        ("5 mg", "five milligrams"),
        ("Qwen3-32B", "quen three thirty two B"),
        ("and/or", "and or"),
        ("24/7", "twenty four seven"),
        ("№5", "number five"),
        ("µg/mL", "micrograms per milliliter"),
    ],
)
def test_what_is_written_otherwise_than_it_is_said_is_found(search, term, text):
    assert search([term], text, threshold=0.0)[0].term == term


@pytest.mark.parametrize(("said", "twin"), [("car key", "khaki"), ("khaki", "car key")])
def test_a_term_stands_before_its_near_twin(search, said, twin):
    assert search([twin, said], said, threshold=0.0)[0].term == said
