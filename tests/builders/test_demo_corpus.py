"""What the dataset card of `builders/term_audio` promises, checked from the files."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen_term_retrieval.corpora.corpus import read_corpus
from qwen_term_retrieval.synthesis.demo import demo_rows
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.text.spellings import normalize_term

FOLDER = Path(__file__).parents[2] / "builders" / "term_audio"
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def utterances():
    return list(read_corpus(FOLDER / "demo"))


@pytest.fixture(scope="module")
def audio(utterances):
    return {utterance.key: soundfile.read(utterance.audio, dtype="int16") for utterance in utterances}


def of_split(utterances, name):
    return [utterance for utterance in utterances if utterance.split == name]


def terms_of(utterances):
    return {normalize_term(term) for utterance in utterances for term in utterance.terms}


def voices_of(utterances):
    return {utterance.speaker for utterance in utterances}


def test_it_is_small_and_its_manifests_name_every_file(utterances):
    files = [path for path in (FOLDER / "demo").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    assert {path for path in files if path.suffix == ".ogg"} == {Path(utterance.audio) for utterance in utterances}


def test_it_holds_as_many_clips_terms_voices_and_engines_as_promised(utterances):
    kinds = Counter(utterance.extra["kind"] for utterance in utterances)
    assert len(utterances) >= 1200
    assert len(terms_of(utterances)) >= 400
    assert kinds["carrier"] >= 150
    assert kinds["no_term"] >= 60
    assert len(voices_of(utterances)) >= 8
    assert len(voices_of(of_split(utterances, "train"))) >= 12
    assert {utterance.extra["engine"] for utterance in utterances} == {"kokoro", "flite", "espeak"}


def test_no_voice_and_no_sentence_is_in_two_splits(utterances):
    voices = [voices_of(of_split(utterances, name)) for name in SPLITS]
    assert all(voices)
    assert sum(map(len, voices)) == len(set.union(*voices))
    sentences = [{u.text for u in of_split(utterances, name) if u.extra["kind"] == "no_term"} for name in SPLITS]
    assert sum(map(len, sentences)) == len(set.union(*sentences))


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_fifth_of_the_terms_is_unseen_in_training(utterances, name):
    train = terms_of(of_split(utterances, "train"))
    held_out = of_split(utterances, name)
    terms = terms_of(held_out)
    assert len(terms - train) == pytest.approx(len(terms) / 5, abs=1)
    for utterance in held_out:
        expected = None if not utterance.terms else normalize_term(utterance.terms[0]) in train
        assert utterance.extra["seen"] == expected


def test_every_term_is_in_the_glossary_and_has_its_domain(utterances):
    entries = json.loads((FOLDER / "glossary.json").read_text(encoding="utf-8"))
    domain_of = {normalize_term(entry["term"]): entry["domain"] for entry in entries}
    assert set(domain_of.values()) == {"medicine", "computing", "places", "products"}
    assert min(Counter(domain_of.values()).values()) >= 100
    assert terms_of(utterances) == set(domain_of)
    assert max(len(term.split()) for term in domain_of) <= 4
    assert len(Glossary.from_file(FOLDER / "glossary.json")) == len(entries)
    for utterance in utterances:
        assert utterance.extra["domain"] == (domain_of[normalize_term(utterance.terms[0])] if utterance.terms else None)


def test_a_no_term_clip_says_no_term(utterances):
    terms = terms_of(utterances)
    said = [u.text for u in utterances if not u.terms] + [
        u.text.replace(u.terms[0], " … ") for u in utterances if u.extra["kind"] == "carrier"
    ]
    assert not [(term, text) for text in said for term in terms if f" {term} " in f" {normalize_term(text)} "]


def test_every_clip_decodes_is_heard_and_lasts_as_long_as_its_text(utterances, audio):
    for utterance in utterances:
        pcm, rate = audio[utterance.key]
        seconds = len(pcm) / rate
        assert (rate, pcm.ndim) == (16_000, 1), utterance.key
        assert np.abs(pcm).max() > 8000, f"{utterance.key} is nearly silent"
        assert 0.3 < seconds < 7.0, utterance.key
        assert 4 < len(utterance.text) / seconds < 30, f"{utterance.key}: {seconds} s for {utterance.text!r}"


def test_a_span_lies_within_the_clip_and_is_as_long_as_a_term_takes(utterances, audio):
    for utterance in utterances:
        if not utterance.terms:
            continue
        (start, end), seconds = utterance.term_spans[0], len(audio[utterance.key][0]) / 16_000
        assert 0 <= start < end <= seconds + 0.01, utterance.key
        assert 4 < len(utterance.terms[0]) / (end - start) < 32, f"{utterance.key}: {start}-{end} {utterance.terms}"
        if utterance.extra["kind"] == "carrier":
            assert 0.1 < start < end < seconds - 0.1, utterance.key
        else:
            assert (start, end) == pytest.approx((0, seconds), abs=0.01), utterance.key


def test_the_audio_in_a_span_is_louder_than_a_pause(utterances, audio):
    for utterance in utterances:
        if utterance.extra["kind"] == "carrier":
            (start, end), pcm = utterance.term_spans[0], audio[utterance.key][0].astype(np.float32)
            inside = pcm[round(start * 16_000) : round(end * 16_000)]
            assert np.sqrt(np.mean(inside**2)) > 0.3 * np.sqrt(np.mean(pcm**2)), utterance.key


def test_the_files_are_those_that_the_script_plans(utterances):
    rows = demo_rows(FOLDER)
    assert [(row.split, row.request.speaker, row.request.sentence) for row in rows] == [
        (utterance.split, utterance.speaker, utterance.text) for utterance in utterances
    ]
