"""The table of the ablation: means over seeds, and differences paired by clip."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from benchmarks.real_speech.ablations.report import hits, read_runs, table_of_runs


@dataclass(frozen=True)
class Row:
    name: str
    what: str = "one change"


BASE, WHOLE, MINED, UNRUN = Row("base"), Row("whole clip"), Row("mined"), Row("unrun")


def write_run(folder, name: str, seed: int, found: int, *, of: int = 20) -> None:
    ranks = {test: {"+10k": [1] * found + [50] * (of - found)} for test in ("studio", "volunteers")}
    whole = {test: {"+10k": [99] * of} for test in ranks}
    result = {"variant": name, "seed": seed, "clips": 6000, "train_s": 10.0, "ranks": ranks, "ranks_whole_clip": whole}
    (folder / f"{name}-{seed}.json").write_text(json.dumps(result))


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    for seed, found in enumerate((10, 12)):
        write_run(folder, "base", seed, found)
        write_run(folder, "mined", seed, found + 4)
    return folder


def test_a_recall_is_the_mean_over_seeds_and_a_difference_that_of_the_same_clips(runs, tmp_path):
    markdown = table_of_runs("ablation", runs, [BASE, MINED, UNRUN], WHOLE, {"budget": "Small."}, tmp_path)
    written = json.loads((tmp_path / "ablation.json").read_text())
    base, whole, mined = written["variants"]
    assert [row["variant"] for row in written["variants"]] == ["base", "whole clip", "mined"]
    assert base["recall"]["studio"]["+10k"]["R@10"]["mean"] == pytest.approx(11 / 20)
    assert base["recall"]["studio"]["+10k"]["R@10"]["difference"] == 0
    assert mined["recall"]["volunteers"]["+10k"]["R@10"]["difference"] == pytest.approx(4 / 20)
    assert mined["recall"]["volunteers"]["+10k"]["R@10"]["difference_low"] > 0
    assert whole["recall"]["studio"]["+10k"]["R@1"]["mean"] == 0
    assert "0.550 (0.50–0.60)" in markdown
    assert "+0.200 [+0.05" in markdown
    assert (tmp_path / "ablation.md").read_text() == markdown
    assert str(tmp_path) not in (tmp_path / "ablation.json").read_text()


def test_a_variant_with_fewer_seeds_is_compared_with_the_same_seeds_of_the_first(runs, tmp_path):
    (runs / "mined-1.json").unlink()
    table_of_runs("ablation", runs, [BASE, MINED], WHOLE, {"budget": "Small."}, tmp_path)
    mined = json.loads((tmp_path / "ablation.json").read_text())["variants"][-1]
    assert mined["seeds"] == [0]
    assert mined["recall"]["studio"]["+10k"]["R@10"]["difference"] == pytest.approx(4 / 20)


def test_hits_are_by_seed_and_clip(runs):
    found_SC = hits(read_runs(runs)["base"], "studio", "+10k", 10)
    assert found_SC.shape == (2, 20)
    assert np.array_equal(found_SC.sum(axis=1), [10, 12])
