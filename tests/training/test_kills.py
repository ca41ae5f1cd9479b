"""Real runs, killed by SIGKILL at moments drawn by lot, on one rank and on two, end as if nothing had happened."""

import json
import random
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.processes.launching import ENVIRONMENT, ROOT

SCRIPT = ROOT / "tests/processes/kills.py"

pytestmark = pytest.mark.slow

GLOBAL_BATCH = 16
# Early stopping ends such a run, some steps after its best checkpoint.
SETTINGS = {
    "max_steps": 30, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
    "load_best_model_at_end": True, "patience": 3, "learning_rate": 1e-2, "lr_scheduler_type": "linear",
    "optim": "adamw_torch", "max_grad_norm": 1.0, "weight_decay": 0.01, "dropout": 0.1, "no_term_weight": 0.1,
    "enable_hard_neg": True, "hard_neg_refresh_steps": 4,
}  # fmt: skip
# Ranks drop units of their own, and AdamW makes whole steps of the last bits of a gradient.
COMPARABLE = SETTINGS | {"dropout": 0.0, "optim": "sgd", "learning_rate": 0.3}
# Kills of a run on so many ranks, and the steps among which they are drawn.
DRAWS = {1: (3, range(18)), 2: (2, range(1, 9))}


def lives(folder, ranks, draws=0, among=(), settings=SETTINGS):
    """One run on so many ranks, killed `draws` times: always a later step, up to four tenths of a second into it."""
    lot = random.Random(ranks)
    kills = [
        {"step": step, "seconds": lot.uniform(0, 0.4), "rank": lot.randrange(ranks)}
        for step in sorted(lot.sample(among, draws))
    ]
    life = {"output_dir": str(folder), "ranks": ranks, "batch_size": GLOBAL_BATCH // ranks, "settings": settings}
    return [life | {"kill": kill} for kill in [*kills, None]]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder of all runs, each having come to its end."""
    folder = tmp_path_factory.mktemp("kills")
    jobs = [lives(folder / f"calm-{ranks}", ranks) for ranks in DRAWS]
    jobs += [lives(folder / f"killed-{ranks}", ranks, *draws) for ranks, draws in DRAWS.items()]
    jobs.append(lives(folder / "even", 1, settings=COMPARABLE))
    moved = folder / "from-two-to-one"
    jobs.append(lives(moved, 2, 1, range(3, 7), COMPARABLE)[:1] + lives(moved, 1, settings=COMPARABLE))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(SCRIPT), str(folder / "jobs.json")]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for job, lived in zip(jobs, json.loads((folder / "ends.json").read_text()), strict=True):
        for life, (_, codes) in zip(job, lived, strict=True):
            if life["kill"] is None:
                assert codes == [0] * life["ranks"], done.stderr[-3000:]
            else:
                assert codes[life["kill"]["rank"]] == -signal.SIGKILL, done.stderr[-3000:]
        # The last of several lives had a checkpoint to begin with.
        assert len(job) == 1 or lived[-1][0].startswith("checkpoint-")
    return folder


def told(folder):
    return json.loads((folder / "ended.json").read_text())


@pytest.mark.parametrize("ranks", DRAWS)
def test_a_run_killed_at_drawn_moments_ends_with_the_bits_of_one_that_was_left_alone(ended, ranks):
    calm, killed = ended / f"calm-{ranks}", ended / f"killed-{ranks}"
    weights, expected = (load_file(folder / "ended.safetensors") for folder in (killed, calm))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert told(killed) == told(calm)
    # It was early stopping that ended it, and the best checkpoint is not the last.
    last = told(calm)["global_step"]
    assert told(calm)["best"][0] < last < SETTINGS["max_steps"]
    assert told(calm)["evaluations_without_progress"] == SETTINGS["patience"]
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        assert (killed / f"checkpoint-{last}" / name).read_bytes() == (calm / f"checkpoint-{last}" / name).read_bytes()


def test_a_run_killed_on_two_ranks_goes_on_with_one_and_the_same_global_batch(ended):
    moved, even = ended / "from-two-to-one", ended / "even"
    weights, expected = (load_file(folder / "ended.safetensors") for folder in (moved, even))
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], atol=1e-5, rtol=0, msg=name)
    found, wanted = told(moved), told(even)
    assert found["global_step"] == wanted["global_step"]
    assert found["best"] == wanted["best"]
    assert found["learning_rate"] == wanted["learning_rate"]
