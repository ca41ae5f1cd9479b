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


def test_the_tables_of_worth_have_an_arm_a_row_and_budgets_apart(tmp_path, capsys):
    for budget, ranks_of_seeds in ((worth.Budget(9, 2, 4), ([1, 20], [3, 9])), (worth.Budget(9, 50, 4), ([1, 2],))):
        results = tmp_path / budget.folder
        results.mkdir()
        for seed, ranks in enumerate(ranks_of_seeds):
            found = {"arm": "scratch", "seed": seed, "losses": [], "ranks": {"studio": ranks}}
            (results / f"scratch-{seed}.json").write_text(json.dumps(found))
    worth.main(["--report", "--work", str(tmp_path), "--results", str(tmp_path)])
    short, longer = capsys.readouterr().out.split("9 steps of pre-training of 48 s, then a retriever of ")[1:]
    assert short.startswith("2 steps of 4 clips")
    assert "| scratch | as it is drawn | 2 | 0.750 (0.500–1.000) |" in short
    assert longer.startswith("50 steps of 4 clips")
    assert "| scratch | as it is drawn | 1 | 1.000 (1.000–1.000) |" in longer
    kept = json.loads((tmp_path / "pretraining_worth.json").read_text())["budgets"]
    assert kept[worth.Budget(9, 2, 4).folder]["runs"][1]["seed"] == 1
