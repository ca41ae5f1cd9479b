"""The phoneme head in training: beside the retriever or alone, and the same however a step is cut."""

import json
from pathlib import Path

import pytest
import torch

from qwen_term_retrieval.losses.phonemes import phoneme_loss
from qwen_term_retrieval.models import TermRetrievalModel
from qwen_term_retrieval.models.flops import StepFlops
from tests.doubles.tiny_trainer import make_tiny_trainer

ALONE = {"phoneme_loss_weight": 1.0, "phoneme_head_alone": True, "audio_text_loss_ratio": 0, "audio_term_loss_ratio": 0}


def head_weights(trainer):
    return {name: values.detach().clone() for name, values in trainer.retrieval_model.phoneme_head.named_parameters()}


def log_of(trainer, key):
    return [line[key] for line in trainer.state.log_history if key in line]


def test_the_head_learns_beside_the_retriever_and_is_heard_in_evaluation(tmp_path):
    trainer = make_tiny_trainer(tmp_path / "run", phoneme_loss_weight=0.5, num_train_epochs=6)
    before = head_weights(trainer)
    trainer.train()
    losses = log_of(trainer, "phoneme_loss")
    assert losses[-1] < losses[0]
    assert any(not torch.equal(before[name], values) for name, values in head_weights(trainer).items())
    assert len(log_of(trainer, "eval_phoneme_error_rate")) == len(log_of(trainer, "eval_recall@10")) > 0


def test_alone_the_head_is_all_that_changes_and_its_frames_come_from_the_cache(tmp_path):
    trainer = make_tiny_trainer(tmp_path / "run", frozen=True, frame_cache_dir=str(tmp_path / "frames"), **ALONE)
    model = trainer.retrieval_model
    others = {name: values.detach().clone() for name, values in model.named_parameters() if "phoneme" not in name}
    before = head_weights(trainer)
    assert trainer.train_clips.frame_cache is not None
    trainer.train()
    for name, values in model.named_parameters():
        if name in others:
            assert torch.equal(values, others[name]), name
    assert any(not torch.equal(before[name], values) for name, values in head_weights(trainer).items())
    assert not log_of(trainer, "audio_term_loss")


def test_accumulated_micro_batches_take_the_step_of_the_whole_batch(tmp_path):
    """Clips of unknown text lie unevenly: a mean of means would weigh them wrongly."""
    found = []
    for name, size, steps in (("whole", 8, 1), ("cut", 2, 4)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        trainer = make_tiny_trainer(
            tmp_path / name,
            frozen=True,
            num_clips=8,
            frame_cache_dir=str(tmp_path / "frames"),
            optim="sgd",
            max_grad_norm=0.0,
            **settings,
            **ALONE,
        )
        trainer.retrieval_model.double()
        for module in trainer.retrieval_model.phoneme_head.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        rows = trainer.train_clips._columns
        silent = [index % 3 == 0 for index in range(len(rows))]
        trainer.train_clips._columns = rows.map(
            lambda text, index, silent=silent: {"text": "" if silent[index] else text},
            with_indices=True,
            input_columns="text",
        )
        trainer.train()
        found.append(head_weights(trainer))
    for name, values in found[0].items():
        torch.testing.assert_close(found[1][name], values, atol=1e-9, rtol=1e-6, msg=name)


def test_a_model_that_is_trained_on_without_the_loss_keeps_its_head(tmp_path):
    first = make_tiny_trainer(tmp_path / "first", phoneme_loss_weight=0.5, max_steps=1)
    first.train()
    first.save_model(str(tmp_path / "model"))
    loaded = TermRetrievalModel.from_pretrained(tmp_path / "model")
    for name, values in head_weights(first).items():
        torch.testing.assert_close(loaded.phoneme_head.state_dict()[name], values)
    assert json.loads(Path(tmp_path, "model/config.json").read_text())["phoneme_head"]["symbols"]


def test_the_head_counts_in_the_operations_of_a_step(tmp_path):
    trainer = make_tiny_trainer(tmp_path / "run", phoneme_loss_weight=0.5)
    batch = next(iter(trainer.get_train_dataloader()))["model_inputs"]
    flops = StepFlops(trainer.retrieval_model)
    without = {name: values for name, values in batch.items() if "phonemes" not in name}
    assert flops(batch) > StepFlops(trainer.retrieval_model)(without)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"phoneme_loss_weight": -0.1}, "phoneme_loss_weight"),
        ({"phoneme_head_alone": True}, "phoneme_head_alone"),
        (
            {"phoneme_loss_weight": 0.5, "audio_text_loss_ratio": 0, "audio_term_loss_ratio": 0},
            "nothing would be trained",
        ),
    ],
)
def test_settings_that_train_nothing_are_refused(tmp_path, settings, named):
    with pytest.raises(ValueError, match=named):
        make_tiny_trainer(tmp_path / "run", **settings)


def test_a_step_without_known_text_costs_nothing():
    assert phoneme_loss(torch.zeros(3, requires_grad=True), 0.0) == 0
