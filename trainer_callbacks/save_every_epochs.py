"""A checkpoint every few epochs in place of every one."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy


class SaveEveryEpochsCallback(TrainerCallback):
    """With `save_strategy="epoch"`, keep only the checkpoints of every `every`-th epoch, and of the last.

    `TermRetrievalTrainer` saves the best epoch as well, whichever it is, and the one that early stopping ends on.

    Raises:
        ValueError: `every` is less than 1, or checkpoints are not saved by epoch.
    """

    def __init__(self, every: int) -> None:
        if every < 1:
            raise ValueError(f"save_every_epochs must be at least 1, not {every}")
        self.every = every

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        strategy = SaveStrategy(args.save_strategy)
        if strategy != SaveStrategy.EPOCH:
            raise ValueError(
                f"save_every_epochs={self.every} needs save_strategy='epoch', not {strategy.value!r}: between steps, "
                "set save_steps"
            )

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        is_last = state.global_step >= state.max_steps
        if round(state.epoch or 0) % self.every and not is_last:
            control.should_save = False
