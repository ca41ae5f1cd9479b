"""Runs of the trainer: the same steps on any number of ranks, and after any kill; what stands in its log."""

import json
import math
import random
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from qwen_term_retrieval.pretraining.audio.data import fixed_visits
from qwen_term_retrieval.pretraining.audio.first_head import begin_at_frequencies
from qwen_term_retrieval.pretraining.audio.flops import NestStepFlops
from qwen_term_retrieval.runs.memory import NotEnoughMemoryError
from tests.doubles.tiny_nest import tiny_nest, tiny_trainer
from tests.processes.launching import ENVIRONMENT, ROOT
from tests.processes.nest_trainer import CASES, KILLED

LOT = random.Random(0)
STEPS = sorted(LOT.sample(range(KILLED["max_steps"] - 1), 4))
LIVES = [{"step": step, "seconds": LOT.uniform(0, 0.1)} for step in STEPS]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all cases on one rank and two, of a run left alone, and of one killed at four drawn steps."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(ROOT / "tests/processes/nest_trainer.py"), str(folder), json.dumps(LIVES)]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    ends = json.loads((folder / "ends.json").read_text())
    assert ends.pop("killed") == [-signal.SIGKILL] * len(LIVES), done.stderr[-3000:]
    assert not any(code for codes in ends.values() for code in codes), done.stderr[-3000:]
    return folder


def told(folder, case, ranks):
    return [json.loads((folder / f"{case}-{ranks}-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_take_the_steps_of_one_though_their_hidden_tokens_differ(runs, case):
    one, two = (load_file(runs / f"{case}-{ranks}.safetensors") for ranks in (1, 2))
    for name, values in one.items():  # running statistics of batch normalisation too
        torch.testing.assert_close(two[name], values, atol=1e-5, rtol=0, msg=name)
    (alone,), (first, second) = told(runs, case, 1), told(runs, case, 2)
    assert first["world_size"] == 2
    assert [sum(step) for step in zip(first["hidden"], second["hidden"], strict=True)] == alone["hidden"]
    for line, expected in zip(first["history"], alone["history"], strict=True):
        for name in ("loss", "grad_norm", "eval_loss", "eval_unigram_entropy", "eval_accuracy", "codes_used"):
            assert line.get(name) == pytest.approx(expected.get(name), abs=1e-4, nan_ok=True), name
    if case == "uneven":
        assert first["hidden"] != second["hidden"]
        assert 0 in first["hidden"] + second["hidden"]  # one rank without a hidden token, the other waits for nobody


@pytest.mark.slow
def test_a_run_in_which_nothing_is_hidden_has_a_loss_of_0_and_moves_no_weight(runs):
    (alone,) = told(runs, "nothing", 1)
    assert [line["loss"] for line in alone["history"] if "loss" in line] == [0.0, 0.0]
    begun = tiny_nest(**CASES["nothing"]["model"]).double().state_dict()
    ended = load_file(runs / "nothing-2.safetensors")
    trained = {name for name, _ in tiny_nest().named_parameters()}
    assert all(torch.equal(ended[name], begun[name]) for name in trained)


@pytest.mark.slow
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all_and_leaves_no_trace(runs):
    for ranks in (1, 2):
        for each in told(runs, "nan", ranks):
            lines = [line for line in each["history"] if "nonfinite_steps" in line]
            assert [line["nonfinite_steps"] for line in lines] == [0, 1, 1, 1]
            assert math.isfinite(lines[-1]["loss"])
        state = load_file(runs / f"nan-{ranks}.safetensors")
        assert all(values.isfinite().all() for values in state.values())


OF_ONE_LIFE = ("runtime", "per_second", "train_loss", "wait", "mfu", "total_flos")


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    kept = [{name: line[name] for name in line if not any(word in name for word in OF_ONE_LIFE)} for line in lines]
    return [line for line in kept if line.keys() - {"epoch", "step"}]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_bits_of_one_that_was_left_alone(runs):
    calm, killed = runs / "calm", runs / "killed"
    last = f"checkpoint-{KILLED['max_steps']}"
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        assert (killed / last / name).read_bytes() == (calm / last / name).read_bytes(), name
    assert (killed / "model.safetensors").read_bytes() == (calm / "model.safetensors").read_bytes()
    assert log_of(killed) == log_of(calm)


def test_it_learns_and_says_how_fast_how_well_and_how_many_codes(tmp_path):
    trainer = tiny_trainer(
        tmp_path, 16, max_steps=60, learning_rate=1e-2, logging_steps=20, eval_strategy="steps", eval_steps=20,
        save_strategy="steps", save_steps=20, load_best_model_at_end=True, check_memory=True,
    )  # fmt: skip
    begun = trainer.evaluate()
    trainer.train()
    evaluations = [line for line in trainer.state.log_history if "eval_loss" in line][1:]
    assert evaluations[-1]["eval_loss"] < begun["eval_loss"] - 0.3
    for name in ("eval_unigram_entropy", "eval_top_code_share", "eval_codes_used"):  # of the same clips, heard alike
        assert {line[name] for line in evaluations} == {begun[name]}
    line = [line for line in trainer.state.log_history if "loss" in line][-1]
    names = {"codes_used", "code_perplexity", "top_code_share", "audio_seconds_per_second", "mfu", "data_wait_share"}
    assert names <= line.keys()
    assert 1 < line["code_perplexity"] < line["codes_used"] <= 64
    # The best checkpoint is in the trainer; an evaluation hears and hides the same each time.
    best = trainer.evaluate()["eval_loss"]
    assert best == pytest.approx(min(each["eval_loss"] for each in evaluations))
    card = (tmp_path / "checkpoint-60" / "README.md").read_text()
    assert "60 steps" in card
    assert "unigram entropy" in card


def test_the_memory_check_leaves_batch_normalisation_as_it_was_and_refuses_what_does_not_fit(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, 8, check_memory=True)
    before = {name: values.clone() for name, values in trainer.nest_model.state_dict().items()}
    (check,) = [each for each in trainer.callback_handler.callbacks if type(each).__name__ == "MemoryCheckCallback"]
    check.check()
    assert all(torch.equal(values, trainer.nest_model.state_dict()[name]) for name, values in before.items())
    monkeypatch.setattr("qwen_term_retrieval.runs.memory.free_memory", lambda device: 1e6)
    with pytest.raises(NotEnoughMemoryError, match=r"a step over 8 clips of [\d.]+ s needs about"):
        trainer.train()


def test_a_run_does_not_go_on_over_other_clips_noise_or_masks(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    tiny_trainer(tmp_path, 8, **settings).train()
    checkpoint = str(tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match="masks: "):
        tiny_trainer(tmp_path, 8, model=tiny_nest(min_blocks=2), **settings).train(resume_from_checkpoint=checkpoint)
    other = {"clip_settings": {"augmentation": {"noise_prob": 1.0}}}
    with pytest.raises(ValueError, match="settings of clips: "):
        tiny_trainer(tmp_path, 8, **other, **settings).train(resume_from_checkpoint=checkpoint)


def test_batches_hold_as_many_seconds_as_they_may_and_workers_change_nothing(tmp_path):
    states = []
    for workers in (0, 1):
        trainer = tiny_trainer(
            tmp_path / str(workers), max_batch_seconds=40, max_steps=3, dataloader_num_workers=workers
        )
        count, seconds = trainer.largest_batch()
        assert 20 < count * seconds <= 40
        trainer.train()
        states.append(trainer.nest_model.state_dict())
    assert all(torch.equal(values, states[1][name]) for name, values in states[0].items())


def test_operations_of_a_step_are_those_of_its_clips_whatever_is_padded():
    model = tiny_nest()
    flops = NestStepFlops(model)
    lengths = torch.tensor([16_000, 48_000])
    mask = model.mask(lengths, [1, 2])
    together = flops({"num_samples_B": lengths, "mask": mask})
    apart = [
        flops({"num_samples_B": lengths[row : row + 1], "mask": mask[row : row + 1, : int(lengths[row]) // 160]})
        for row in range(2)
    ]
    assert together == pytest.approx(sum(apart), rel=1e-6)
    hidden = int(model.block_mask.tokens(mask).sum())
    head = 6 * model.head.weight.numel()
    unmasked = flops({"num_samples_B": lengths, "mask": torch.zeros_like(mask)})
    assert together - unmasked == pytest.approx(head * hidden)


def test_a_head_that_begins_at_the_frequencies_has_the_loss_of_the_unigram_and_an_encoder_that_learns(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=2)
    model, clips = trainer.nest_model, trainer.train_clips
    begin_at_frequencies(model, clips, num_clips=10**6)
    batch = clips.batch(fixed_visits(len(clips), 0))
    output = model(**batch)
    valid_BT = torch.arange(output.tokens_BTH.shape[1]) < output.num_frames_B[:, None]
    tokens = output.tokens_BTH[valid_BT][:, 0]
    expected = (tokens.bincount(minlength=model.config.num_codes) + 0.1).float()
    share = (expected / expected.sum())[output.tokens_NH[:, 0]]
    torch.testing.assert_close(output.loss, -share.log().mean(), atol=1e-4, rtol=0)
    before = {name: values.clone() for name, values in model.encoder.named_parameters()}
    trainer.train()
    assert model.head.weight.abs().max() > 0
    assert any(not torch.equal(values, before[name]) for name, values in model.encoder.named_parameters())


def test_fewer_clips_than_a_batch_are_refused(tmp_path):
    with pytest.raises(ValueError, match="96 training clips are fewer than one global batch of 128"):
        tiny_trainer(tmp_path, 128)
