import sys
import types

import pytest
import torch
from transformers import Trainer, TrainerState, TrainingArguments

from qwen_term_retrieval.trainer_callbacks import NonFiniteGuardCallback, NonFiniteStepsError, RecallReporterCallback
from qwen_term_retrieval.trainer_callbacks.recall_reporter import HISTORY_NAME, PICTURE_NAME, read_history
from tests.doubles.tiny_trainer import make_tiny_trainer

RECALLS = [0.5, 0.75, 0.625]


class Clips(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"num_samples_B": 8_000 * (1 + index % 2)}


class Ears(torch.nn.Module):
    """The smallest model with our forward's keyword: half a second and one second of audio in turns."""

    frame_rate = 50.0

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, num_samples_B=None, num_frames_B=None):
        with torch.no_grad():
            lengths = num_frames_B if num_samples_B is None else num_samples_B
        return {"loss": self.weight.square() * lengths.float().mean()}


class EvaluatingTrainer(Trainer):
    recalls = iter(())

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        recall = next(self.recalls)
        output.metrics.update(
            {f"{metric_key_prefix}_recall@10": recall, f"{metric_key_prefix}_recall@10_unseen": recall / 2}
        )
        return output


def train(folder, callbacks, *, resume=False, epochs=3, **settings):
    args = TrainingArguments(
        output_dir=str(folder), num_train_epochs=epochs, per_device_train_batch_size=4, learning_rate=1e-6,
        use_cpu=True, report_to="none", remove_unused_columns=False, label_names=[], logging_steps=1,
        eval_strategy="epoch", save_strategy="epoch", metric_for_best_model="eval_recall@10", greater_is_better=True,
        disable_tqdm=True, **settings,
    )  # fmt: skip
    trainer = EvaluatingTrainer(
        model=Ears(), args=args, train_dataset=Clips(), eval_dataset=Clips(), callbacks=callbacks
    )
    trainer.can_return_loss = True
    trainer.recalls = iter(RECALLS)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_recall_of_every_evaluation_is_printed_and_kept(tmp_path, capsys):
    train(tmp_path, [RecallReporterCallback()])
    history = read_history(tmp_path / HISTORY_NAME)
    assert [record["eval_recall@10"] for record in history] == RECALLS
    assert [(record["step"], record["epoch"]) for record in history] == [(2, 1.0), (4, 2.0), (6, 3.0)]

    lines = [line for line in capsys.readouterr().out.splitlines() if "{" not in line]
    assert lines[0].split() == ["step", "epoch", "R@10", "R@10", "unseen"]
    assert [line.split() for line in lines[1:4]] == [
        ["*", "2", "1.00", "0.5000", "0.2500"],
        ["*", "4", "2.00", "0.7500", "0.3750"],
        ["6", "3.00", "0.6250", "0.3125"],
    ]


def test_a_resumed_run_goes_on_in_the_history_from_its_checkpoint(tmp_path):
    train(tmp_path, [RecallReporterCallback()], epochs=2)
    path = tmp_path / HISTORY_NAME
    with path.open("a") as file:
        file.write('{"step": 5, "epoch": 2.5, "eval_recall@10": 0.9}\n')  # after the checkpoint: will be done again
    train(tmp_path, [RecallReporterCallback()], epochs=3, resume=True)
    assert [record["step"] for record in read_history(path)] == [2, 4, 6]

    train(tmp_path, [RecallReporterCallback()], epochs=1)
    assert [record["step"] for record in read_history(path)] == [2]


def test_a_run_leaves_no_scratch_beside_its_history_and_picture(tmp_path):
    train(tmp_path, [RecallReporterCallback()], epochs=2)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [HISTORY_NAME, PICTURE_NAME]


def test_every_evaluation_and_the_end_of_a_run_draw_a_new_picture(tmp_path):
    drawn = []

    class Watching(RecallReporterCallback):
        def _draw(self, args, state, best_step):
            super()._draw(args, state, best_step)
            drawn.append((best_step, (tmp_path / PICTURE_NAME).read_bytes()))

    train(tmp_path, [Watching()])
    assert [step for step, _ in drawn] == [2, 4, 4, 4]
    assert all(png.startswith(b"\x89PNG") for _, png in drawn)
    assert len({png for _, png in drawn}) >= 3


def test_without_matplotlib_a_run_says_so_once_and_draws_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    train(tmp_path, [RecallReporterCallback()])
    assert not (tmp_path / PICTURE_NAME).exists()
    assert [record["step"] for record in read_history(tmp_path / HISTORY_NAME)] == [2, 4, 6]
    assert [record.getMessage() for record in caplog.records if "matplotlib" in record.getMessage()] == [
        "no recall_history.png: it takes matplotlib, pip install 'qwen_term_retrieval[report]'"
    ]


def test_an_evaluation_without_recall_is_passed_over(tmp_path):
    callback = RecallReporterCallback()
    args = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none")
    trainer = Trainer(model=Ears(), args=args, callbacks=[callback])
    callback.on_evaluate(args, trainer.state, trainer.control, metrics={"eval_loss": 1.0})
    assert not (tmp_path / "run" / HISTORY_NAME).exists()


# ---- the guard against what is not finite ---------------------------------------------------------------------


class SpoiltEars(Ears):
    """Gives a loss or a gradient that is not finite at the forward passes named (counted from 1)."""

    def __init__(self, bad_losses=(), bad_gradients=()):
        super().__init__()
        self.passes, self.bad_losses, self.bad_gradients = 0, bad_losses, bad_gradients
        self.weight.register_hook(lambda gradient: gradient * (torch.inf if self.passes in self.bad_gradients else 1))

    def forward(self, num_samples_B=None):
        self.passes += 1
        loss = self.weight * 1e-4
        return {"loss": loss.detach() * torch.inf + loss if self.passes in self.bad_losses else loss}


class GuardedTrainer(Trainer):
    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, NonFiniteGuardCallback):
                callback.note_loss(loss)
        return loss


def train_guarded(folder, model, guard, *, resume=False, steps=6, **settings):
    args = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=0.1, optim="sgd",
        lr_scheduler_type="constant", weight_decay=0.0, use_cpu=True, report_to="none", remove_unused_columns=False,
        label_names=[], logging_steps=1, save_steps=2, disable_tqdm=True,
        restore_callback_states_from_checkpoint=True, **settings,
    )  # fmt: skip
    trainer = GuardedTrainer(model=model, args=args, train_dataset=Clips(), callbacks=[guard])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def counts(trainer):
    return [line["nonfinite_steps"] for line in trainer.state.log_history if "nonfinite_steps" in line]


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize("spoilt", [{"bad_losses": (2, 5)}, {"bad_gradients": (2, 5)}])
def test_a_step_that_is_not_finite_changes_no_weight_and_is_counted(tmp_path, spoilt, max_grad_norm):
    model = SpoiltEars(**spoilt)
    trainer = train_guarded(tmp_path, model, NonFiniteGuardCallback(), max_grad_norm=max_grad_norm)
    assert trainer.state.global_step == 6
    assert counts(trainer) == [0, 1, 1, 1, 2, 2]
    assert model.weight.item() == pytest.approx(1 - 4 * 0.1 * 1e-4, abs=1e-7)


def test_one_bad_micro_batch_skips_the_whole_accumulated_step(tmp_path):
    model = SpoiltEars(bad_losses=(2,))
    trainer = train_guarded(tmp_path, model, NonFiniteGuardCallback(), steps=3, gradient_accumulation_steps=2)
    assert counts(trainer) == [1, 1, 1]
    assert model.weight.item() == pytest.approx(1 - 2 * 0.1 * 1e-4, abs=1e-7)


def test_more_skipped_steps_than_allowed_stop_the_run(tmp_path):
    with pytest.raises(NonFiniteStepsError, match=r"step 4: .* 3 skipped steps .* max_nonfinite_steps is 2"):
        train_guarded(tmp_path, SpoiltEars(bad_losses=(1, 3, 4)), NonFiniteGuardCallback(2))


def test_a_resumed_run_keeps_its_count_of_skipped_steps(tmp_path):
    train_guarded(tmp_path, SpoiltEars(bad_losses=(1, 2)), NonFiniteGuardCallback(2), steps=4)
    with pytest.raises(NonFiniteStepsError, match="step 5"):
        train_guarded(tmp_path, SpoiltEars(bad_losses=(1,)), NonFiniteGuardCallback(2), steps=6, resume=True)


def test_a_gradient_scaler_may_overflow_without_being_counted(tmp_path):
    guard, model = NonFiniteGuardCallback(), SpoiltEars()
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    optimizer = types.SimpleNamespace(scaler=torch.amp.GradScaler("cpu"))
    model.weight.grad = torch.tensor(torch.inf)
    state = TrainerState()
    guard.on_pre_optimizer_step(args, state, None, model=model, optimizer=optimizer)
    assert guard.nonfinite_steps == 0
    guard.note_loss(torch.tensor(torch.nan))
    guard.on_pre_optimizer_step(args, state, None, model=model, optimizer=optimizer)
    assert guard.nonfinite_steps == 1
    assert model.weight.grad is None


# ---- mining ----------------------------------------------------------------------------------------------------


MINING = {"enable_hard_neg": True, "hard_neg_k": 2, "hard_neg_refresh_steps": 2, "hard_neg_phonetic_ratio": 0.5}
MINING |= {"hard_neg_phonemizer": "characters", "eval_strategy": "no", "save_strategy": "no", "max_steps": 4}


def test_the_age_of_the_hard_negatives_is_kept_in_the_history(tmp_path):
    trainer = make_tiny_trainer(tmp_path, **MINING)
    trainer.train()
    ages = [line["hard_neg_age"] for line in trainer.state.log_history if "loss" in line]
    table = trainer.hard_negatives_of
    assert ages == [step - table.mined_at(step) for step in range(4)]


@pytest.mark.parametrize("disable_tqdm", [False, True])
def test_mining_draws_bars_unless_bars_are_disabled(tmp_path, capsys, monkeypatch, disable_tqdm):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    make_tiny_trainer(tmp_path, **MINING, disable_tqdm=disable_tqdm).train()
    drawn = capsys.readouterr().err
    assert [f"{part}: 100%" in drawn for part in ("encoding terms", "mining negatives", "nearest terms")] == (
        [not disable_tqdm] * 3
    )
