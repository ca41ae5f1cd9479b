"""The benchmark of audio pre-training, at tiny sizes and without NeMo."""

import json

import pytest

from benchmarks.pretraining import worth
from benchmarks.pretraining.equality import measure_masks
from benchmarks.pretraining.nemo_venv import has_nemo
from benchmarks.pretraining.speed import in_turns


def test_masks_are_held_against_their_formula():
    found = measure_masks(300)
    assert set(found) == {"0.6 s", "1 s", "3 s", "15 s"}
    assert found["1 s"]["clips without any, ours"] == 0
    assert found["1 s"]["by the formula"] == pytest.approx(0.99**60)


def test_ratios_are_of_medians_and_the_first_is_the_peer():
    found = in_turns({"NeMo": lambda: sum(range(200_000)), "ours": lambda: sum(range(20_000))}, rounds=3)
    assert found["ratio"] > 3
    assert not has_nemo()


def test_the_table_of_worth_has_an_arm_a_row_and_what_is_done_is_not_run_again(tmp_path, capsys):
    results = tmp_path / "worth"
    results.mkdir()
    for seed, ranks in enumerate(([1, 20], [3, 9])):
        found = {"arm": "scratch", "seed": seed, "losses": [], "ranks": {"studio": ranks}}
        (results / f"scratch-{seed}.json").write_text(json.dumps(found))
    worth.main(["--report", "--work", str(tmp_path), "--results", str(tmp_path)])
    table = capsys.readouterr().out
    assert "| scratch | as it is drawn | 2 | 0.750 (0.500–1.000) |" in table
    assert json.loads((tmp_path / "pretraining_worth.json").read_text())["runs"][1]["seed"] == 1
