"""Checkpoints of a run: when they are written, what is in them, and that each is a model with a card."""

import json

import pytest
import torch
from safetensors import safe_open

from qwen_term_retrieval.models import TermRetrievalModel
from qwen_term_retrieval.models.model_card import read_card
from qwen_term_retrieval.models.weights.revisions import folder_checkpoints
from tests.doubles.tiny_trainer import make_tiny_trainer
from tests.processes.trainer import make_trainer


def evaluated(trainer):
    """Recall@10 of every evaluation, by step."""
    return {entry["step"]: entry["eval_recall@10"] for entry in trainer.state.log_history if "eval_recall@10" in entry}


def names(folder):
    return {path.name for path in folder.glob("checkpoint-*")}


@pytest.mark.slow
def test_every_checkpoint_is_a_model_with_the_card_of_its_own_weights(tmp_path):
    trainer = make_tiny_trainer(tmp_path, save_total_limit=None)
    trainer.train()
    recall = evaluated(trainer)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    for step, recall_at_10 in list(recall.items())[:3]:
        folder = tmp_path / f"checkpoint-{step}"
        TermRetrievalModel.from_pretrained(folder)
        numbers = read_card((folder / "README.md").read_text())
        assert (numbers.step, numbers.epoch) == (step, step / 2)
        assert numbers.recall["recall@10"] == pytest.approx(recall_at_10, abs=1e-4)
    trainer.save_model()
    at_the_end = read_card((tmp_path / "README.md").read_text())
    assert at_the_end.step == trainer.state.best_global_step
    assert at_the_end.recall["recall@10"] == pytest.approx(trainer.state.best_metric, abs=1e-4)


@pytest.mark.slow
def test_a_card_says_nothing_of_weights_that_nobody_evaluated(tmp_path):
    evaluating = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make_tiny_trainer(tmp_path, max_steps=2, load_best_model_at_end=False, **evaluating).train()
    first, second = (read_card((tmp_path / f"checkpoint-{step}/README.md").read_text()) for step in (1, 2))
    assert first.recall == {}
    assert second.recall.keys() == {"recall@1", "recall@5", "recall@10"}


@pytest.mark.slow
def test_a_checkpoint_holds_adapters_and_heads_and_names_the_tower_by_its_digest(tmp_path):
    trainer = make_trainer(
        tmp_path, 8, lora_r=4, max_steps=1, save_strategy="steps", save_steps=1, optim="adamw_torch", learning_rate=1e-3
    )
    trainer.train()
    checkpoint = tmp_path / "checkpoint-1"
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        saved = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  not a dict
    in_the_tower = {key for key in saved if key.startswith("audio_tower.encoder.")}
    assert in_the_tower
    assert all(".lora_" in key for key in in_the_tower)
    trained = {name for name, values in trainer.model.named_parameters() if values.requires_grad}
    assert trained <= saved.keys()

    config = json.loads((checkpoint / "config.json").read_text())
    assert config["audio_tower"] == "openai/whisper-tiny.en"
    assert len(config["audio_tower_sha256"]) == 64
    num_saved = sum(torch.Size(shape).numel() for shape in saved.values())
    # The weights, and Adam's two moments of those that are trained; the tower alone would be 33 MB.
    (size,) = [each.num_bytes for each in folder_checkpoints(tmp_path)]
    assert size < 3 * 4 * num_saved + 1e6
    assert size < 10e6


@pytest.mark.slow
def test_checkpoints_of_every_few_epochs_leave_out_neither_the_best_nor_the_last(tmp_path):
    trainer = make_tiny_trainer(tmp_path, save_every_epochs=3, num_train_epochs=5, save_total_limit=None)
    trainer.train()
    saved, best = {6, 10}, (-1.0, -1.0)
    for entry in trainer.state.log_history:
        if "eval_mrr" in entry and (entry["eval_recall@10"], entry["eval_mrr"]) > best:
            best = (entry["eval_recall@10"], entry["eval_mrr"])
            saved.add(entry["step"])
    assert names(tmp_path) == {f"checkpoint-{step}" for step in saved}
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{trainer.state.best_global_step}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "num_steps"), [({"max_steps": 3}, 3), ({"patience": 1, "learning_rate": 0.0, "num_train_epochs": 9}, 4)]
)
def test_a_run_resumed_at_its_end_takes_no_further_step(tmp_path, end, num_steps):
    every_step = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    settings = {**(every_step if "max_steps" in end else {}), **end}
    make_tiny_trainer(tmp_path, **settings).train()
    again = make_tiny_trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{num_steps}"))
    assert again.state.global_step == num_steps
    assert max(int(name.rpartition("-")[2]) for name in names(tmp_path)) == num_steps


def test_epochs_between_checkpoints_need_checkpoints_by_epoch(tmp_path):
    with pytest.raises(ValueError, match="save_every_epochs=2 needs save_strategy='epoch', not 'steps'"):
        make_tiny_trainer(tmp_path, save_every_epochs=2, eval_strategy="steps", save_strategy="steps")
    with pytest.raises(ValueError, match="save_every_epochs must be at least 1, not 0"):
        make_tiny_trainer(tmp_path, save_every_epochs=0)


def test_a_checkpoint_cut_short_is_listed_as_such_and_a_folder_without_any_is_named(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "model.safetensors").write_bytes(b"cut")
    (tmp_path / "checkpoint-3-before2").mkdir()  # one that somebody put aside
    (cut,) = folder_checkpoints(tmp_path)
    assert (cut.is_whole, cut.is_best, cut.num_bytes, cut.numbers.step) == (False, False, 3, None)
    with pytest.raises(FileNotFoundError, match="holds no model and no checkpoint-<step>: give the output_dir"):
        folder_checkpoints(tmp_path / "checkpoint-3")
