"""What an entry says is used in a search, and kept in an index: pronunciations, several ways, weight, threshold."""

import logging
import math

import pytest

from qwen_term_retrieval.retrieval.retriever import TermRetriever
from tests.doubles.spoken_terms import SPOKEN_TERMS

IPA = "s æ k s ə f oʊ n"


@pytest.fixture(scope="module")
def clip(say):
    return say("saxophone", speed=1.05)


def search(model, terms, clip, **settings):
    retriever = TermRetriever.from_pretrained(model)
    retriever.index(terms, show_progress=False)
    return retriever, retriever.search(clip, sampling_rate=16_000, **settings)


@pytest.mark.parametrize("said", [f"/{IPA}/", "saxophone", f"nonsense|/{IPA}/"])
def test_a_term_is_found_by_the_pronunciation_that_its_entry_gives(listening_model, clip, said):
    terms = [{"term": "Adolphe's horn", "pronunciations": said}, *(t for t in SPOKEN_TERMS if t != "saxophone")]
    _, (best, *_) = search(listening_model, terms, clip)
    assert best.term == "Adolphe's horn"
    _, (plain, *_) = search(listening_model, ["saxophone"], clip)
    assert best.score == pytest.approx(plain.score, abs=1e-3)


def test_the_sounds_of_a_search_are_those_of_the_entry(hearing_model):
    from qwen_term_retrieval.retrieval.looks.second_look import SecondLook

    retriever = TermRetriever.from_pretrained(hearing_model)
    retriever.index([{"term": "Adolphe's horn", "pronunciations": [f"/{IPA}/"]}, "IL-6"], show_progress=False)
    SecondLook(hearing_model).pronounce(retriever.term_index)
    bank, alphabet = retriever.term_index.pronunciations, hearing_model.phoneme_head.alphabet
    said = [(int(owner), " ".join(alphabet.spell(bank[row].tolist()))) for row, owner in enumerate(bank.owners_R)]
    assert said == [(0, IPA), (1, "aɪ ɛ l s ɪ k s"), (1, "ɪ l s ɪ k s")]


def test_each_way_to_say_a_term_has_a_vector(listening_model):
    retriever, _ = TermRetriever.from_pretrained(listening_model), None
    index = retriever.index(["IL-6", "sepsis", {"term": "5 mg", "aliases": ["5 ml"]}], show_progress=False)
    assert [len(term.sayings) for term in index.terms] == [2, 1, 2]
    assert len(index.vectors_ND) == 5


def test_a_sound_that_the_model_does_not_have_is_refused_with_the_term(listening_model):
    retriever = TermRetriever.from_pretrained(listening_model)
    with pytest.raises(ValueError, match=r"glossary, 'horn': the pronunciation /h 9 n/ holds '9', which the model has"):
        retriever.index([{"term": "horn", "pronunciations": ["/h 9 n/"]}])


def test_a_threshold_of_its_own_decides_for_a_term(listening_model, clip):
    others = [term for term in SPOKEN_TERMS if term != "saxophone"]
    _, found = search(listening_model, [{"term": "saxophone", "threshold": 1.0}, *others], clip, threshold=-1.0)
    assert "saxophone" not in [match.term for match in found]
    assert len(found) == len(others[:9]) or len(found) == 9
    _, found = search(listening_model, [{"term": "penicillin", "threshold": -1.0}, "saxophone"], clip, threshold=1.0)
    assert [match.term for match in found] == ["penicillin"]


def test_a_weight_multiplies_the_odds_of_a_term(listening_model, clip):
    _, plain = search(listening_model, SPOKEN_TERMS, clip)
    others = [term for term in SPOKEN_TERMS if term != plain[1].term]
    _, found = search(listening_model, [{"term": plain[1].term, "weight": 10.0}, *others], clip)
    scale = listening_model.logit_scale.exp().item()
    (own,) = [match for match in found if match.term == plain[1].term]
    assert own.score == pytest.approx(min(1.0, plain[1].score + math.log(10) / scale), abs=1e-4)
    assert found == sorted(found, key=lambda match: -match.score)


def test_a_saved_index_keeps_what_its_entries_say(listening_model, clip, tmp_path):
    entry = {"term": "Adolphe's horn", "pronunciations": [f"/{IPA}/"], "weight": 2.0, "threshold": 0.1}
    retriever, found = search(listening_model, [entry, "IL-6"], clip)
    retriever.save_index(tmp_path / "index")
    opened = TermRetriever.from_pretrained(listening_model)
    opened.load_index(tmp_path / "index")
    assert list(opened.term_index.terms) == list(retriever.term_index.terms)
    assert opened.search(clip, sampling_rate=16_000) == found


def test_what_the_model_cannot_read_is_left_out_of_a_search_and_named(listening_model, caplog):
    retriever = TermRetriever.from_pretrained(listening_model)
    with caplog.at_level(logging.WARNING):
        assert len(retriever.index(["sepsis", "東京"], show_progress=False)) == 1
    assert "1 of 2 terms are written in Chinese characters" in caplog.text
    with pytest.raises(ValueError, match="nothing can be said of any"):
        retriever.add_terms(["大阪"])


def test_a_threshold_that_was_chosen_among_many_more_terms_is_warned_of(listening_model, caplog):
    import copy

    model = copy.deepcopy(listening_model)
    model.config.threshold, model.config.threshold_terms = 0.69, 532
    with caplog.at_level(logging.WARNING):
        TermRetriever.from_pretrained(model).index(["Kubernetes"], show_progress=False)
    assert "the threshold 0.690 was chosen among 532 terms, and this glossary holds 1" in caplog.text
