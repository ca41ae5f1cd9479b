"""Ends a run that no longer gets better."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

from qwen_term_retrieval.trainer_callbacks.best_evaluation import is_best, metric_name


class PatienceCallback(EarlyStoppingCallback):
    """`EarlyStoppingCallback` that counts evaluations since the best one, as `is_best` has it.

    That of transformers takes equal recall for no progress, and would end a run whose ranks still rise.
    """

    def on_evaluate(  # type: ignore[override]  # as the class it extends has it
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        if metric_name(args) not in metrics:  # an evaluation of other data
            return
        self.early_stopping_patience_counter = (
            0 if is_best(args, state, metrics) else self.early_stopping_patience_counter + 1
        )
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True
