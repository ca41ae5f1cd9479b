"""The benchmark of search by sounds at a tiny size: the ways agree, and emissions may come from a file."""

import json

import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein

from benchmarks.verification import __main__ as verification
from benchmarks.verification.clips import read_emissions, simulated
from benchmarks.verification.spelling import spelling


@pytest.fixture
def few_terms(monkeypatch):
    terms = ["atrial fibrillation", "hypertension", "Kubernetes", "folder", "San Jose", "penicillin", "ox", "measure"]
    monkeypatch.setattr(verification, "real_terms", lambda number: terms[:number])
    return terms


def run(tmp_path, *arguments):
    out = tmp_path / "out.json"
    verification.main(
        ["--terms", "8", "--clips", "4", "--threads", "1", "--spoken", "1", "--out", str(out), *arguments]
    )
    return json.loads(out.read_text())


def test_every_way_finds_terms_and_is_timed(few_terms, tmp_path, capsys):
    results = run(tmp_path, "--spoken", "0")
    rows = {row["way"]: row for row in results["search"]}
    assert rows["sounds"]["recall_at_10"] == rows["torch ctc_loss"]["recall_at_10"] == 1
    assert rows["sounds"]["recall_at_1"] == rows["torch ctc_loss"]["recall_at_1"]
    assert {row["way"] for row in results["alignment"]} > {"forward_scores", "best_paths", "torch ctc_loss"}
    assert "| 8 | sounds |" in capsys.readouterr().out.replace("  ", " ")


@pytest.mark.slow
def test_the_decoder_finds_a_spoken_term_among_those_spelled_like_it(few_terms):
    transcription, scored = spelling(few_terms, 1, num_candidates=(5,))
    assert transcription["way"] == "greedy transcription, 30 s"
    assert scored["recall_at_1"] == 1


def test_emissions_of_a_trained_head_are_read_from_a_file(few_terms, tmp_path):
    rng = np.random.default_rng(0)
    heard = [simulated(said, 5, rng, error_rate=1e-9) for said in (np.array([1, 2, 3]), np.array([4, 3]))]
    path = tmp_path / "emissions.npz"
    np.savez(
        path,
        log_probs=np.concatenate(heard),
        num_frames=[len(each) for each in heard],
        texts=["oxbow", "ox"],
        symbols=list("abcd"),
    )
    clips, symbols = read_emissions(path)
    assert ([clip.text for clip in clips], symbols) == (["oxbow", "ox"], tuple("abcd"))
    np.testing.assert_array_equal(clips[1].log_probs_TC, heard[1])


def test_a_simulated_head_errs_as_often_as_it_is_told():
    rng = np.random.default_rng(0)
    said = rng.integers(1, 40, 2000)
    best = simulated(said, 40, rng, error_rate=0.25).argmax(dim=1).tolist()
    heard = [sound for sound, before in zip(best, [0, *best], strict=False) if sound not in (0, before)]
    assert Levenshtein.normalized_distance(said.tolist(), heard) == pytest.approx(0.25, abs=0.03)
