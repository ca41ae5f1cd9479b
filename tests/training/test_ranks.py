"""Two real ranks against one: the same steps whatever the objective, the same decisions when something goes wrong."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.processes.launching import ENVIRONMENT, ROOT
from tests.processes.ranks import CASES, MATRIX, run, trained_weights
from tests.processes.trainer import make_trainer

SCRIPT = ROOT / "tests/processes/ranks.py"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The folder in which two processes left all of `CASES`."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder)], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("untrained"), 16)
    return trained_weights(trainer)["audio_head.weight"]


def of_rank(folder, name, rank):
    found = json.loads((folder / f"{name}-{rank}.json").read_text())
    assert found["world_size"] == 2
    return found


def values_of(found, key):
    return [line[key] for line in found["history"] if key in line]


# Weights are float64 here, embeddings float32: a difference of the method stands far above one of rounding.
WEIGHTS_ATOL = 1e-7
LOSS_RTOL = 2e-6


def assert_same_weights(weights, others):
    assert weights.keys() == others.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], atol=WEIGHTS_ATOL, rtol=0, msg=name)


LORA_AND_ACCUMULATED = ["lora", "lora-chunks", "accumulated", "accumulated-chunks"]
OTHERS = ["mined", "mined-sigmoid-chunks", "aliases", "lonely-term", "durations"]
OTHERS += ["phonemes", "phonemes-chunks", "phonemes-lonely"]


# "lora-chunks" is the same and GradCache.
LONG = {"lora": [pytest.mark.long]}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=LONG.get(name, [])) for name in (*MATRIX, *LORA_AND_ACCUMULATED, *OTHERS)],
)
def test_two_ranks_take_the_steps_of_one(two_ranks, untrained, tmp_path, name):
    trainer, alone = run(name, tmp_path, CASES[name])
    assert (trained_weights(trainer)["audio_head.weight"] - untrained).abs().max() > 1e-3
    assert_same_weights(load_file(two_ranks / f"{name}.safetensors"), trained_weights(trainer))
    for part in ("audio_text_loss", "audio_term_loss", "no_term_loss", "hard_negative_loss", "phoneme_loss"):
        together = values_of(of_rank(two_ranks, name, 0), part)
        assert together == pytest.approx(values_of(alone, part), rel=LOSS_RTOL, abs=1e-6)
    assert any(values_of(alone, "no_term_loss"))
    for metric in ("eval_recall@1", "eval_recall@10", "eval_mrr"):
        assert values_of(of_rank(two_ranks, name, 1), metric) == values_of(alone, metric)
    assert bool(values_of(alone, "eval_mrr")) == (name == "aliases")


WITH_CHUNKS = [name for name in (*MATRIX, *LORA_AND_ACCUMULATED, *OTHERS) if name.endswith("-chunks")]
WITH_CHUNKS.remove("mined-sigmoid-chunks")  # the mined case without chunks has the other loss


@pytest.mark.parametrize("name", [name.removesuffix("-chunks") for name in WITH_CHUNKS])
def test_gradcache_takes_the_steps_of_the_whole_batch(two_ranks, name):
    whole = name if name in CASES else f"{name}-whole"
    assert_same_weights(
        load_file(two_ranks / f"{name}-chunks.safetensors"), load_file(two_ranks / f"{whole}.safetensors")
    )


@pytest.mark.parametrize(
    "name", [pytest.param("lora", marks=pytest.mark.long), "lora-chunks", "accumulated-chunks", "mined", "durations"]
)
def test_throughput_is_that_of_all_ranks_and_said_alike_on_each(two_ranks, tmp_path, name):
    _, alone = run(name, tmp_path, CASES[name])
    one, other = of_rank(two_ranks, name, 0), of_rank(two_ranks, name, 1)
    for rate in ("clips_per_second", "tokens_per_second", "data_wait_share", "tflops_per_second", "mfu"):
        assert len(values_of(one, rate)) == one["global_step"]
        assert values_of(one, rate) == values_of(other, rate)

    def seconds_a_clip(found):
        audio, clips = values_of(found, "audio_seconds_per_second"), values_of(found, "clips_per_second")
        return [seconds / number for seconds, number in zip(audio, clips, strict=True)]

    assert seconds_a_clip(one) == pytest.approx(seconds_a_clip(alone), rel=1e-3)
    # Texts that both ranks hold are read twice, audio is not.
    (together,), (single,) = values_of(one, "total_flos"), values_of(alone, "total_flos")
    assert single <= together < 2 * single


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("bad-") and name != "bad-too-often"])
def test_what_is_not_finite_on_one_rank_skips_the_step_on_all(two_ranks, tmp_path, name):
    """One bad step out of four leaves the weights of the other three, and the count in every log line."""
    trainer, alone = run(name, tmp_path, CASES[name])
    weights = load_file(two_ranks / f"{name}.safetensors")
    assert all(values.isfinite().all() for values in weights.values())
    assert_same_weights(weights, trained_weights(trainer))
    for found in (alone, of_rank(two_ranks, name, 0), of_rank(two_ranks, name, 1)):
        assert found["global_step"] == 4
        assert values_of(found, "nonfinite_steps") == [0, 1, 1, 1]
        assert all(value == value for value in values_of(found, "audio_term_loss"))


def test_a_run_that_is_not_finite_too_often_stops_on_all_ranks_at_the_same_step(two_ranks):
    for rank in (0, 1):
        found = of_rank(two_ranks, "bad-too-often", rank)
        assert found["global_step"] == 2
        assert found["error"].startswith("step 3: the loss or a gradient is not finite. That makes 3 skipped steps")
        assert "max_nonfinite_steps is 2" in found["error"]


def test_early_stopping_and_the_plateau_schedule_agree_on_all_ranks(two_ranks):
    one, other = of_rank(two_ranks, "plateau", 0), of_rank(two_ranks, "plateau", 1)
    assert one["global_step"] == other["global_step"] == 4
    assert values_of(one, "eval_recall@10") == values_of(other, "eval_recall@10")
    assert len(set(values_of(one, "eval_recall@10"))) == 1
    assert one["learning_rate"] == other["learning_rate"] == 1e-12 / 2**3
