"""Runs of the trainer: the same steps on any number of ranks, however accumulated, and after any kill."""

import json
import random
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from qwen_term_retrieval.pretraining.text.run import open_prepared
from tests.processes.launching import ENVIRONMENT, ROOT
from tests.processes.text_trainer import CASES, KILLED, RANKS, make_trainer, weights

LOT = random.Random(0)
STEPS = sorted(LOT.sample(range(KILLED["max_steps"] - 1), 20))
LIVES = [{"step": step, "seconds": LOT.uniform(0, 0.1)} for step in STEPS]


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """The folder of all cases on all numbers of ranks, of a run left alone, and of one killed at twenty drawn steps."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(ROOT / "tests/processes/text_trainer.py"), str(dataset), str(folder)]
    done = subprocess.run(
        [*command, json.dumps(LIVES)], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ends = json.loads((folder / "ends.json").read_text())
    assert ends.pop("killed") == [-signal.SIGKILL] * 20, done.stderr[-3000:]
    assert not any(code for codes in ends.values() for code in codes), done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS[1:])
@pytest.mark.parametrize("case", CASES)
def test_ranks_take_the_steps_of_one_though_their_tokens_differ(runs, case, ranks):
    one, many = (load_file(runs / f"{case}-{count}.safetensors") for count in (1, ranks))
    for name, values in one.items():
        torch.testing.assert_close(many[name], values, atol=1e-5, rtol=0, msg=name)
    told = [json.loads((runs / f"{case}-{ranks}-{rank}.json").read_text()) for rank in range(ranks)]
    alone = json.loads((runs / f"{case}-1-0.json").read_text())
    assert {each["world_size"] for each in told} == {ranks}
    assert told[0]["tokens"] != told[1]["tokens"]
    assert [sum(step) for step in zip(*(each["tokens"] for each in told), strict=True)] == alone["tokens"]
    for line, expected in zip(told[0]["history"], alone["history"], strict=True):
        for name in ("loss", "grad_norm", "eval_loss", "eval_bits_per_byte"):
            assert line.get(name) == pytest.approx(expected.get(name), abs=1e-4)


def test_four_batches_of_one_make_the_step_of_one_batch_of_four(dataset, tmp_path):
    trainers = [
        make_trainer(
            dataset, tmp_path / str(size), size, gradient_accumulation_steps=8 // size, max_steps=3, eval_strategy="no",
            dtype=torch.float64,
        )
        for size in (8, 2)
    ]  # fmt: skip
    kept = list(range(8))
    for trainer in trainers:
        # The same eight pairs in every step, in batches of any size.
        size = trainer.order.global_batch_size
        trainer.order.batch = lambda place, size=size: (
            torch.tensor(kept).numpy().reshape(-1, size)[place.number % (8 // size)]
        )
        trainer.train()
    whole, parts = map(weights, trainers)
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values, atol=1e-6, rtol=0, msg=name)
    losses = [[line["loss"] for line in trainer.state.log_history if "loss" in line] for trainer in trainers]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


OF_ONE_LIFE = ("runtime", "per_second", "train_loss", "peak", "wait", "mfu", "total_flos")


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    kept = [{name: line[name] for name in line if not any(word in name for word in OF_ONE_LIFE)} for line in lines]
    # The last line of a life that came to the end of the run before it was killed says nothing else.
    return [line for line in kept if line.keys() - {"epoch", "step"}]


@pytest.mark.slow
def test_a_run_that_is_killed_at_twenty_steps_ends_with_the_bits_of_one_that_was_left_alone(runs):
    calm, killed = runs / "calm", runs / "killed"
    last = f"checkpoint-{KILLED['max_steps']}"
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        assert (killed / last / name).read_bytes() == (calm / last / name).read_bytes(), name
    assert (killed / "model.safetensors").read_bytes() == (calm / "model.safetensors").read_bytes()
    assert log_of(killed) == log_of(calm)


def test_a_run_does_not_go_on_over_other_pairs_or_other_batches(dataset, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "eval_strategy": "no"}
    make_trainer(dataset, tmp_path, 8, **settings).train()
    checkpoint = str(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="pairs of a global micro-batch: 8 then, 4 now"):
        make_trainer(dataset, tmp_path, 4, **settings | {"max_steps": 4}).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="max_seq_len: 32 then, 16 now"):
        make_trainer(dataset, tmp_path, 8, **settings, max_seq_len=16).train(resume_from_checkpoint=checkpoint)


def test_it_learns_and_says_how_fast_and_how_well(dataset, tmp_path):
    trainer = make_trainer(
        dataset, tmp_path, 24, max_steps=60, optim="adamw_torch", learning_rate=1e-2, num_generations=2, eval_steps=20,
        hidden_size=32, max_eval_pairs=20, check_memory=True, save_strategy="steps", save_steps=20,
        load_best_model_at_end=True,
    )  # fmt: skip
    trainer.train()
    evaluations = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert evaluations[-1]["eval_bits_per_byte"] < 0.8 * evaluations[0]["eval_bits_per_byte"]
    assert evaluations[-1]["eval_perplexity"] == pytest.approx(torch.tensor(evaluations[-1]["eval_loss"]).exp().item())
    line = [line for line in trainer.state.log_history if "tokens_per_second" in line][-1]
    assert {"mfu", "peak_rss_gb", "padding_share", "data_wait_share", "nonfinite_steps"} <= line.keys()
    assert 0 <= line["padding_share"] < 0.5
    answers = json.loads((tmp_path / "generations" / "step-60.json").read_text())
    assert [set(answer) for answer in answers] == [{"prompt", "response", "generated"}] * 2
    assert any(answer["generated"] for answer in answers)
    # The best checkpoint is in the trainer, its tied weights whole.
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(each["eval_loss"] for each in evaluations))


def test_a_worker_that_builds_batches_over_the_end_of_epochs_changes_nothing(dataset, tmp_path):
    made = []
    for workers in (0, 1):
        settings = {"dataloader_num_workers": workers, "max_steps": 8, "eval_strategy": "no"}
        trainer = make_trainer(dataset, tmp_path / str(workers), 90, **settings)
        trainer.train()
        assert trainer.state.epoch > 2
        made.append(weights(trainer))
    assert all(torch.equal(values, made[1][name]) for name, values in made[0].items())


def test_pairs_cut_at_another_length_are_refused(dataset, tmp_path):
    trainer = make_trainer(dataset, tmp_path, 8)
    train, _, tokenizer = open_prepared(dataset, 16)
    with pytest.raises(ValueError, match="cut at 16 tokens, but max_seq_len is 32"):
        type(trainer)(trainer.text_model, trainer.args, train, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="fewer than one global batch of 5000"):
        make_trainer(dataset, tmp_path, 5000)
