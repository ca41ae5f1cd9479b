"""Two stages: what windows or sounds propose is listened to again, and comes with a probability and exact times."""

import copy
import json
import logging

import numpy as np
import pytest
import torch

from qwen_term_retrieval.errors import VerifierError
from qwen_term_retrieval.evaluation.evaluator import RetrievalEvaluator
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.indexes.folder import read_meta, write_meta
from qwen_term_retrieval.retrieval.indexing.fingerprint import model_fingerprint
from qwen_term_retrieval.retrieval.looks.second_look import SecondLook, pronunciations_of_terms
from qwen_term_retrieval.retrieval.recordings.searching import search_recordings
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.retrieval.verifier_fitting import calibrate_verifier, close_bank
from qwen_term_retrieval.text.alphabet import Alphabet
from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.verification.evidence import FEATURES
from qwen_term_retrieval.verification.verifier import BELIEFS, Verifier
from tests.doubles.spoken_terms import SPOKEN_TERMS
from tests.doubles.tiny_trainer import tiny_model

# Near twins of what is said, and terms that sound like nothing of it.
OTHERS = ("helicopters", "ammonia", "violin", "mitochondria", "atrial flutter", "harbour", "gastritis", "seventeen")
RATE = 16_000


@pytest.fixture(scope="session")
def rows(say):
    """Clips at speeds that nothing was fitted to, and three in which no term of the glossary is said."""
    said = [
        {"audio": (say(term, "en-us", speed), RATE), "terms": [term], "text": term, "duration": 1.5}
        for speed in (1.0, 1.05)
        for term in SPOKEN_TERMS
    ]
    return said + [
        {"audio": (say(text, "en-us", 1.0), RATE), "terms": [], "text": text, "duration": 1.5}
        for text in ("good morning", "a cup of tea", "twenty past nine")
    ]


@pytest.fixture(scope="session")
def verifying_model(hearing_model, rows):
    retriever = TermRetriever(hearing_model)
    retriever.index([*SPOKEN_TERMS, *OTHERS])
    calibrate_verifier(retriever, rows, show_progress=False)
    return hearing_model


@pytest.fixture
def retriever(verifying_model):
    retriever = TermRetriever(verifying_model)
    retriever.index([*SPOKEN_TERMS, *OTHERS])
    return retriever


def test_what_is_said_comes_first_with_a_probability_and_its_own_times(retriever, say):
    silence = np.zeros(RATE // 2, np.int16)
    found_at = []
    for term in SPOKEN_TERMS[:6]:
        pcm = say(term, "en-us", 1.1)
        matches = retriever.search((np.concatenate([silence, pcm, silence]), RATE), top_k=3, threshold=0.0)
        assert all(0 <= match.probability <= 1 for match in matches)
        assert [match.probability for match in matches] == sorted((m.probability for m in matches), reverse=True)
        found_at.append((matches[0].term == term, matches[0].start, matches[0].end, len(pcm) / RATE))
    assert sum(right for right, *_ in found_at) >= 5
    # So small a head hears the first sound too soon.
    assert all(0 <= start < 0.5 + seconds and 0.5 < end <= seconds + 1 for _, start, end, seconds in found_at)


def test_the_stored_threshold_is_a_probability_and_answers_with_nothing_where_nothing_is_said(retriever):
    assert 0 < retriever.threshold < 1
    assert retriever.threshold == retriever.verifier.threshold
    noise = np.random.default_rng(0).normal(0, 300, 2 * RATE).astype(np.int16)
    assert retriever.search((noise, RATE)) == []


@pytest.mark.parametrize("first_stage", ["windows", "sounds", "both"])
def test_every_first_stage_finds_what_is_said(verifying_model, say, first_stage):
    retriever = TermRetriever(verifying_model, first_stage=first_stage)
    retriever.index([*SPOKEN_TERMS, *OTHERS])
    firsts = [
        retriever.search((say(term, "en-us", 1.1), RATE), top_k=1, threshold=0.0)[0].term for term in SPOKEN_TERMS[:6]
    ]
    assert sum(first == term for first, term in zip(firsts, SPOKEN_TERMS[:6], strict=True)) >= 5


def test_a_sentence_in_the_glossary_is_not_what_every_short_clip_says(verifying_model, say):
    """As many sounds as it has, none of them was heard: the mean over all of them would hide that."""
    sentence = " ".join([*OTHERS, *SPOKEN_TERMS])
    retriever = TermRetriever(verifying_model)
    retriever.index([*SPOKEN_TERMS, sentence])
    for term in SPOKEN_TERMS[:6]:
        (first, *_) = retriever.search((say(term, "en-us", 1.1), RATE), top_k=3, threshold=0.0)
        assert first.term != sentence


def test_the_bank_that_is_close_to_what_is_said_holds_parts_extensions_and_twins(verifying_model):
    retriever = TermRetriever(verifying_model)
    index = retriever.index(
        ["atrial fibrillation", "atrial flutter", "violin", "pneumonia", "harbour", "gastritis", "ox"]
    )
    rows = [{"terms": ["atrial fibrillation"]}, {"terms": ["pneumonia"]}]
    near = close_bank(retriever, SecondLook(verifying_model), index, rows)
    texts = {term.text for term in near.terms}
    assert {"atrial fibrillation", "pneumonia", "atrial", "fibrillation", "atrial flutter"} <= texts
    assert any(text.startswith("pneumonia ") for text in texts)
    assert any(text.endswith(" pneumonia") for text in texts)
    assert len(index) == 7, "the glossary itself stays as it is"


def test_a_batch_and_a_clip_alone_are_answered_alike(retriever, say):
    clips = [(say(term, "en-us", 1.1), RATE) for term in SPOKEN_TERMS[:3]]
    together = retriever.search_batch([clip for clip, _ in clips], sampling_rate=RATE, top_k=3, threshold=0.0)
    for clip, matches in zip(clips, together, strict=True):
        alone = retriever.search(clip, top_k=3, threshold=0.0)
        assert [match.term for match in alone] == [match.term for match in matches]
        assert [m.probability for m in alone] == pytest.approx([m.probability for m in matches], abs=1e-3)


def test_a_stream_hears_each_time_a_term_is_said(retriever, say):
    second = np.zeros(RATE, np.int16)
    once, again = say("helicopter", "en-us", 1.1), say("helicopter", "en-us", 1.0)
    pcm = np.concatenate([second, once, second, second, again, second])
    heard = list(retriever.stream([pcm[first : first + 4000] for first in range(0, len(pcm), 4000)], threshold=0.5))
    assert [match.term for match in heard].count("helicopter") == 2
    assert all(match.probability >= 0.5 for match in heard)


def test_a_search_gives_the_surest_of_each_time(retriever, say):
    second = np.zeros(RATE, np.int16)
    speech = [say(term, "en-us", speed) for speed in (1.1, 1.0) for term in SPOKEN_TERMS[:5]]
    pcm = np.concatenate([piece for pcm in speech for piece in (pcm, second // 2, second)])
    said = list(retriever.each_time((pcm, RATE), threshold=0.3))
    surest = {}
    for match in said:
        surest[match.term] = max(match.probability, surest.get(match.term, 0))
    found = {match.term: match.probability for match in retriever.search((pcm, RATE), top_k=50, threshold=0.3)}
    assert len(said) > len(found) >= 5
    assert found == pytest.approx(surest, abs=1e-3)


def test_an_index_keeps_how_its_terms_sound(retriever, tmp_path, say):
    clip = (say("pneumonia", "en-us", 1.1), RATE)
    before = retriever.search(clip, top_k=3, threshold=0.0)
    retriever.save_index(tmp_path / "index")
    assert json.loads((tmp_path / "index/meta.json").read_text())["num_sounds"]
    retriever.load_index(tmp_path / "index")
    assert retriever.search(clip, top_k=3, threshold=0.0) == before


def test_an_index_of_earlier_days_learns_how_its_terms_sound(verifying_model, tmp_path, say):
    plain = TermRetriever(verifying_model, verify="none")
    plain.index([*SPOKEN_TERMS, *OTHERS])
    plain.save_index(tmp_path / "index")
    retriever = TermRetriever(verifying_model)
    assert retriever.load_index(tmp_path / "index").sounds is not None
    assert retriever.search((say("pneumonia", "en-us", 1.1), RATE), threshold=0.0)[0].probability is not None


def test_sounds_of_another_phonemizer_are_learnt_anew(retriever, tmp_path, caplog):
    retriever.save_index(tmp_path / "index")
    meta = read_meta(tmp_path / "index")
    write_meta(tmp_path / "index", meta | {"alphabet": "0123456789abcdef"})
    before = retriever.term_index.pronunciations
    after = retriever.load_index(tmp_path / "index").pronunciations
    assert "another phoneme head" in caplog.text
    np.testing.assert_array_equal(after.classes_S, before.classes_S)


def test_an_index_outlives_the_training_of_the_head(hearing_model):
    other = copy.deepcopy(hearing_model)
    with torch.no_grad():
        other.phoneme_head.classes.bias += 1
    assert model_fingerprint(other) == model_fingerprint(hearing_model)


def test_terms_come_and_go_with_their_sounds(retriever, say):
    clip = (say("pneumonia", "en-us", 1.1), RATE)
    retriever.remove_terms(["atrial fibrillation", "pneumonia"])
    assert all(match.term != "pneumonia" for match in retriever.search(clip, threshold=0.0))
    retriever.add_terms(["pneumonia"])
    assert retriever.search(clip, top_k=1, threshold=0.0)[0].term == "pneumonia"
    assert len(set(retriever.term_index.pronunciations.owners_R.tolist())) == len(retriever.term_index)


def test_a_selected_index_searches_like_one_of_these_terms_alone(retriever):
    index = retriever.term_index
    part = index.select([1, 3, 5])
    alone = TermRetriever(retriever.model).index([index.terms[place].text for place in (1, 3, 5)])
    assert [term.text for term in part.terms] == [term.text for term in alone.terms]
    torch.testing.assert_close(part.vectors_ND, alone.vectors_ND)
    np.testing.assert_array_equal(part.pronunciations.classes_S, alone.pronunciations.classes_S)


def test_verify_none_answers_with_cosines_as_before(verifying_model, listening_model, say):
    clip = (say("pneumonia", "en-us", 1.1), RATE)
    answers = []
    for model in (verifying_model, listening_model):
        plain = TermRetriever(model, verify="none")
        plain.index([*SPOKEN_TERMS, *OTHERS])
        answers.append(plain.search(clip, top_k=3, threshold=-1.0))
    assert answers[0] == answers[1]
    assert answers[0][0].probability is None


def test_the_evaluator_searches_as_a_user_does(verifying_model, rows):
    metrics = RetrievalEvaluator(rows, [*SPOKEN_TERMS, *OTHERS], bank_sizes=[12])(
        TermRetriever(verifying_model), show_progress=False
    )
    assert metrics["recall@1"] >= 0.8
    assert 0 <= metrics["precision"] <= 1
    assert metrics["threshold"] == verifying_model.config.verifier["threshold"]


def test_a_model_that_cannot_verify_is_refused_with_the_remedy(listening_model, hearing_model):
    with pytest.raises(VerifierError, match="recipe phoneme_head"):
        TermRetriever(listening_model, verify="sounds")
    with pytest.raises(VerifierError, match="recipe phoneme_head"):
        SecondLook(listening_model)
    with pytest.raises(VerifierError, match="first_stage='sounds'"):
        TermRetriever(listening_model, first_stage="sounds")


def test_thresholds_of_another_kind_are_refused(retriever, say):
    with pytest.raises(ValueError, match="probability, from 0 to 1"):
        retriever.search((say("pneumonia"), RATE), threshold=-0.5)
    with pytest.raises(ValueError, match="probability, from 0 to 1"):
        next(search_recordings(retriever, [], threshold=-0.5))


@pytest.mark.parametrize("wrong", [{"verify": "twice"}, {"first_stage": "letters"}])
def test_what_there_is_not_is_refused(verifying_model, wrong):
    with pytest.raises(ValueError, match="must be one of"):
        TermRetriever(verifying_model, **wrong)


def test_rows_that_cannot_fit_a_verifier_are_refused(hearing_model, rows):
    retriever = TermRetriever(hearing_model, verify="none")
    retriever.index(["something else", "and another"])
    with pytest.raises(VerifierError, match="the glossary holds 0"):
        calibrate_verifier(retriever, rows, show_progress=False)
    with pytest.raises(VerifierError, match="at least 20 clips"):
        calibrate_verifier(retriever, rows[:3], show_progress=False)


def test_a_term_that_cannot_be_said_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        ways = pronunciations_of_terms([Term("ox", 1), Term("…", 2)], alphabet=Alphabet("characters"))
    assert [len(each) for each in ways] == [1, 0]
    assert "1 of 2 terms" in caplog.text
    assert "'…'" in caplog.text


def test_a_decoder_tells_homophones_apart(verifying_model, say):
    retriever = TermRetriever(verifying_model, verify="spelling")
    retriever.index([*SPOKEN_TERMS, *OTHERS, "new monia"])
    clip = (say("pneumonia", "en-us", 1.0), RATE)
    by_sounds = TermRetriever(verifying_model)
    by_sounds.index(retriever.term_index.terms)
    tied = {match.term: match.probability for match in by_sounds.search(clip, threshold=0.0)}
    told = {match.term: match.probability for match in retriever.search(clip, threshold=0.0)}
    assert tied["pneumonia"] - tied["new monia"] == pytest.approx(0, abs=0.1)
    assert told["pneumonia"] > 2 * told["new monia"]


def test_a_decoder_is_asked_for_where_there_is_one():
    model = tiny_model()
    model.add_phoneme_head()
    model.config.verifier = Verifier(dict.fromkeys(FEATURES, 1.0), dict.fromkeys(BELIEFS, 1.0)).to_dict()
    with pytest.raises(VerifierError, match="a pretrained Whisper"):
        TermRetriever(model, verify="spelling")


def test_an_index_without_sounds_says_so():
    index = TermIndex(2, fingerprint="made by hand")
    with pytest.raises(ValueError, match="does not know how its terms sound"):
        _ = index.pronunciations
