"""The benchmark of recordings at tiny sizes: what it measures is there, and what it counts is counted right."""

import numpy as np
import pytest
import soundfile

from benchmarks.recordings.live import live
from benchmarks.recordings.search import measured
from benchmarks.recordings.speech import live_speech, write_speech
from qwen_term_retrieval.retrieval.retriever import TermRetriever

RATE = 16_000


@pytest.fixture(scope="module")
def speech(say):
    pause = np.zeros(RATE, np.int16)
    pieces, said, now = [], [], 0.0
    for term in ("saxophone", "kubernetes", "pneumonia"):
        pcm = say(term)
        now += 1 + len(pcm) / RATE
        said.append((term, now))
        pieces += [pause, pcm]
    return np.concatenate([*pieces, pause]), said


def test_a_term_is_told_after_it_was_said_and_the_delay_counts_the_work(listening_model, speech):
    retriever = TermRetriever(listening_model)
    retriever.index(["saxophone", "kubernetes", "pneumonia"])
    found = live(retriever, *speech, hop=0.25, threshold=0.7)
    assert found["found"] == found["terms"] == 3
    assert 0 < found["delay_median_s"] <= found["delay_p95_s"]
    assert found["cores"] > 0
    with pytest.raises(ValueError, match="no term was found"):
        live(retriever, *speech, hop=0.25, threshold=0.999)


def test_a_search_in_a_process_of_its_own_says_what_it_took(listening_model, speech, tmp_path):
    listening_model.save_pretrained(tmp_path / "model")
    (tmp_path / "terms.txt").write_text("saxophone\nkubernetes\n")
    soundfile.write(tmp_path / "speech.wav", speech[0], RATE)
    found = measured(str(tmp_path / "model"), "float32", tmp_path / "terms.txt", tmp_path / "speech.wav", 1, 0.7)
    assert found["matches"] == 2
    assert found["first_match_s"] <= found["seconds"]
    assert found["peak_mb"] >= found["before_mb"] > 0


def test_speech_is_as_long_as_asked_for_and_its_terms_end_within_it(tmp_path):
    write_speech(tmp_path / "speech.flac", 20)
    assert soundfile.info(tmp_path / "speech.flac").frames == 20 * RATE
    pcm, said = live_speech(20)
    assert len(pcm) >= 20 * RATE
    assert said
    assert all(0 < end < len(pcm) / RATE for _, end in said)
