"""The callbacks of a run, and those among them that a trainer tells of what it sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from qwen_term_retrieval.runs.arguments import RunArguments
from qwen_term_retrieval.trainer_callbacks import (
    MemoryCheckCallback,
    NonFiniteGuardCallback,
    PatienceCallback,
    SaveEveryEpochsCallback,
    ThroughputCallback,
)


class RunCallbacks:
    """What the settings of any run ask for, around the callbacks that are given.

    Args:
        args: the run.
        given: the user's, and what this kind of training adds.
        check_memory: refuses a step that does not fit.
    """

    def __init__(
        self, args: RunArguments, given: Sequence[TrainerCallback], check_memory: Callable[[], object]
    ) -> None:
        self.in_order = [*([MemoryCheckCallback(check_memory)] if args.check_memory else []), *given]
        if args.patience and args.load_best_model_at_end:
            self.in_order.append(PatienceCallback(args.patience))
        if args.save_every_epochs != 1:
            self.in_order.append(SaveEveryEpochsCallback(args.save_every_epochs))
        if args.skip_nonfinite_steps:
            self.in_order.append(NonFiniteGuardCallback(args.max_nonfinite_steps))
        self.follow(self.in_order)

    def follow(self, callbacks: Sequence[TrainerCallback]) -> None:
        """Take these for the callbacks of the run: of a checkpoint's the Trainer makes new ones, and users add some."""
        self._patience = [each for each in callbacks if isinstance(each, EarlyStoppingCallback)]
        self._guards = [each for each in callbacks if isinstance(each, NonFiniteGuardCallback)]
        self._throughput = [each for each in callbacks if isinstance(each, ThroughputCallback)]

    def note_loss(self, loss: torch.Tensor) -> None:
        """Tell of the loss of a micro-batch."""
        for guard in self._guards:
            guard.note_loss(loss)

    def note_wait(self, began: float) -> None:
        """Tell of batches that were asked for at `began`, and are here now."""
        for throughput in self._throughput:
            throughput.note_wait(began)

    @property
    def patience_is_over(self) -> bool:
        return any(each.early_stopping_patience_counter >= each.early_stopping_patience for each in self._patience)

    def begin_trial(self) -> None:
        """Let patience count from the start; that of transformers does not by itself."""
        for each in self._patience:
            each.early_stopping_patience_counter = 0
