"""Which checkpoint of a run is the best, whether the run has come to its end, and which step its weights are of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from transformers import Trainer

from qwen_term_retrieval.runs.callbacks import RunCallbacks
from qwen_term_retrieval.trainer_callbacks.best_evaluation import is_best

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run of any `Trainer`.

    Args:
        trainer: whose run it is; its arguments have `save_every_epochs`.
        callbacks: whose patience may end it.
    """

    def __init__(self, trainer: Trainer, callbacks: RunCallbacks):
        self.trainer = trainer
        self.callbacks = callbacks

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether an evaluation is the best so far, ties decided by MRR; asked before the Trainer notes it."""
        return is_best(self.trainer.args, self.trainer.state, metrics)

    def note_evaluation(self, best: bool) -> None:
        """Let the best evaluation be of this step, and save the best and the last that `save_every_epochs` skips."""
        trainer, state = self.trainer, self.trainer.state
        if best and state.best_global_step is not None:
            state.best_global_step = state.global_step
        if getattr(trainer.args, "save_every_epochs", 1) > 1 and (best or trainer.control.should_training_stop):
            trainer.control.should_save = True

    @property
    def run_is_over(self) -> bool:
        """Whether a run was resumed at its end: the Trainer of transformers 5.23 would take another step, or many."""
        state = self.trainer.state
        return self.callbacks.patience_is_over or state.global_step >= state.max_steps

    def end_run(self) -> None:
        """Say that there is nothing to train, and let the Trainer end."""
        logger.info("the run had come to its end at step %d: there is nothing to train", self.trainer.state.global_step)
        self.trainer.control.should_training_stop = True

    @property
    def weights_step(self) -> int:
        """The step that the model's weights are of: the last, or that of the best checkpoint, once it is loaded."""
        trainer, state = self.trainer, self.trainer.state
        best = state.best_model_checkpoint
        was_loaded = not trainer.is_in_train and trainer.args.load_best_model_at_end and best and Path(best).is_dir()
        return int(state.best_global_step or 0) if was_loaded else state.global_step

    @property
    def weights_epoch(self) -> float | None:
        """The epoch of `weights_step`; None where nobody can tell."""
        step, state = self.weights_step, self.trainer.state
        epochs = [entry["epoch"] for entry in state.log_history if entry["step"] == step and "epoch" in entry]
        return epochs[-1] if epochs else state.epoch if step == state.global_step else None

    def weights_metrics(self, name: str) -> dict[str, float]:
        """The last evaluation of `weights_step` that has a metric of this name; empty where there was none."""
        step = self.weights_step
        found = [entry for entry in self.trainer.state.log_history if entry["step"] == step and name in entry]
        return found[-1] if found else {}
