"""The pieces of the trainer serve another: a run without glossary, terms or audio, guarded, resumed and published."""

from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, Trainer

from qwen_term_retrieval.runs.arguments import RunArguments
from qwen_term_retrieval.runs.callbacks import RunCallbacks
from qwen_term_retrieval.runs.checkpoints.best import Checkpoints
from qwen_term_retrieval.runs.checkpoints.publishing import Publisher
from qwen_term_retrieval.runs.checkpoints.resuming import (
    check_resumable,
    check_same_data,
    keep_identity,
    last_whole_checkpoint,
    rows_identity,
)
from qwen_term_retrieval.runs.loader import EpochLoader
from qwen_term_retrieval.runs.loss_means import LossMeans
from qwen_term_retrieval.runs.recipes import parse_recipe
from qwen_term_retrieval.runs.sampling import batch_sampler


class LineConfig(PretrainedConfig):
    model_type = "line"


class Line(PreTrainedModel):
    config_class = LineConfig

    def __init__(self, config):
        super().__init__(config)
        self.slope = nn.Linear(1, 1)
        self.post_init()

    def forward(self, x_B1, y_B1):
        error_B1 = self.slope(x_B1) - y_B1
        return {"loss": error_B1.square().mean(), "bias": error_B1.mean().abs()}


class Points(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitems__(self, visits):
        return [self.rows[visit.clip] for visit in visits]


class LineTrainer(Trainer):
    """Fits a line. What stands here is all that such a trainer needs of its own."""

    def __init__(self, args, rows, **kwargs):
        self.points, self.identity = Points(rows), {"points": rows_identity(rows, ["x", "y"])}
        self.losses, self.callbacks = LossMeans(), RunCallbacks(args, (), lambda: None)
        self.checkpoints = Checkpoints(self, self.callbacks)
        self.publisher = Publisher(self, self.checkpoints)
        torch.manual_seed(args.seed)
        super().__init__(Line(LineConfig()), args, train_dataset=self.points, callbacks=self.callbacks.in_order)

    def get_train_dataloader(self):
        sampler = batch_sampler(self.points.rows["seconds"], self.args, self._train_batch_size)
        return EpochLoader.of_run(self.points, sampler, self.collate, self.args)

    @staticmethod
    def collate(rows):
        return {name + "_B1": torch.tensor([[row[name]] for row in rows]) for name in ("x", "y")}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        parts = model(**inputs)
        loss = parts.pop("loss")
        self.losses.add(parts, finite=loss.detach().isfinite())
        return loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.callbacks.note_loss(loss)
        return loss

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs |= self.losses.take(self.args.device)
        super().log(logs, start_time)

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.is_in_train and output_dir is not None:
            keep_identity(output_dir, self.identity)

    def _load_callback_state(self):
        super()._load_callback_state()
        self.callbacks.follow(self.callback_handler.callbacks)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        check_resumable(resume_from_checkpoint)
        check_same_data(resume_from_checkpoint, self.identity)
        super()._load_from_checkpoint(resume_from_checkpoint, model)


def points(spoilt=None, count=40):
    rows = {"x": [row / count for row in range(count)], "seconds": [1.0 + row % 5 for row in range(count)]}
    rows["y"] = [float("nan") if row == spoilt else 3 * x + 1 for row, x in enumerate(rows["x"])]
    return datasets.Dataset.from_dict(rows)


def arguments(folder, **settings):
    common = {"use_cpu": True, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 3, "logging_steps": 1,
              "save_total_limit": 5}  # fmt: skip
    common |= {"per_device_train_batch_size": 8, "learning_rate": 0.1, "disable_tqdm": True, "report_to": "none"}
    return RunArguments(output_dir=str(folder), **{**common, **settings})


def test_a_run_that_was_stopped_ends_at_the_same_bits(tmp_path):
    rows = points()
    whole = LineTrainer(arguments(tmp_path / "whole", max_steps=9), rows)
    whole.train()
    LineTrainer(arguments(tmp_path / "stopped", max_steps=9), rows).train()
    stopped = tmp_path / "stopped"
    for later in ("checkpoint-6", "checkpoint-9"):
        (stopped / later / "trainer_state.json").unlink()
    resumed = LineTrainer(arguments(stopped, max_steps=9), rows)
    found = last_whole_checkpoint(stopped)
    assert found == str(stopped / "checkpoint-3")
    resumed.train(resume_from_checkpoint=found)
    assert all(map(torch.equal, whole.model.state_dict().values(), resumed.model.state_dict().values()))
    lines = [line for line in resumed.state.log_history if "loss" in line]
    assert {"bias", "nonfinite_steps"} <= lines[-1].keys()
    with pytest.raises(ValueError, match=r"was trained on other data \(points: 40 with digest"):
        LineTrainer(arguments(stopped, max_steps=12), points(count=48)).train(
            resume_from_checkpoint=str(stopped / "checkpoint-3")
        )


def test_a_step_on_a_bad_point_is_skipped_and_the_line_still_found(tmp_path):
    trainer = LineTrainer(arguments(tmp_path, num_train_epochs=8, save_strategy="no"), points(spoilt=7))
    trainer.train()
    skipped = trainer.state.log_history[-2]["nonfinite_steps"]
    assert 0 < skipped < trainer.state.global_step
    assert trainer.model.slope.weight.isfinite().all()


def test_batches_within_a_budget_of_seconds(tmp_path):
    trainer = LineTrainer(arguments(tmp_path, max_steps=2, max_batch_seconds=40.0, save_strategy="no"), points())
    sizes = [len(batch["x_B1"]) for batch in trainer.get_train_dataloader()]
    assert sizes
    assert all(size % 8 == 0 for size in sizes)


def test_settings_of_its_own_come_from_a_recipe_and_flags(tmp_path):
    (tmp_path / "line.yaml").write_text(f"output_dir: {tmp_path / 'out'}\nlearning_rate: 0.5\nuse_cpu: true\n")
    parsed = partial(parse_recipe, (RunArguments,), tmp_path, default="line")
    (args,) = parsed(["--max_batch_seconds", "30"])
    assert (args.learning_rate, args.max_batch_seconds, args.recorded["recipe"]) == (0.5, 30.0, "line")
    with pytest.raises(ValueError, match="'glossary' is no setting"):
        parsed(["--glossary", "terms.txt"])


def test_nothing_is_pushed_and_no_repository_is_made_unasked(tmp_path):
    trainer = LineTrainer(arguments(tmp_path, max_steps=3), points())
    made = []
    trainer.publisher.make_repository(lambda: made.append(True))
    trainer.train()
    trainer.publisher.wait()
    assert made == [True]
    assert not (Path(trainer.args.output_dir) / ".push").exists()
