"""The callbacks of a run, and those among them that a trainer tells of what it sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from transformers import EarlyStoppingCallback, TrainerCallback

from qwen_term_retrieval.trainer_callbacks import (
    MemoryCheckCallback,
    NonFiniteGuardCallback,
    PatienceCallback,
    SaveEveryEpochsCallback,
    ThroughputCallback,
)
from qwen_term_retrieval.training.run_arguments import RunArguments

Part = TypeVar("Part", bound=TrainerCallback)


class RunCallbacks:
    """What the settings of any run ask for, around the callbacks that are given; one that is given replaces our own.

    Args:
        args: the run.
        given: the user's, and what this kind of training adds.
        check_memory: refuses a step that does not fit.

    Attributes:
        patience, guard: None where the run has none. throughput: always there.
    """

    def __init__(
        self, args: RunArguments, given: Sequence[TrainerCallback], check_memory: Callable[[], object]
    ) -> None:
        self._callbacks = [*([MemoryCheckCallback(check_memory)] if args.check_memory else []), *given]
        self.patience = self._given(EarlyStoppingCallback)
        if self.patience is None and args.patience and args.load_best_model_at_end:
            self.patience = self._added(PatienceCallback(args.patience))
        if args.save_every_epochs != 1:
            self._added(SaveEveryEpochsCallback(args.save_every_epochs))
        self.guard = self._given(NonFiniteGuardCallback)
        if self.guard is None and args.skip_nonfinite_steps:
            self.guard = self._added(NonFiniteGuardCallback(args.max_nonfinite_steps))
        self.throughput = self._given(ThroughputCallback) or self._added(ThroughputCallback())

    def follow(self, callbacks: Sequence[TrainerCallback]) -> None:
        """Take these for the callbacks of the run: the Trainer made them from what a checkpoint says of ours."""
        self._callbacks = list(callbacks)
        self.patience = self._given(EarlyStoppingCallback)
        self.guard = self._given(NonFiniteGuardCallback)
        self.throughput = self._given(ThroughputCallback) or self.throughput

    @property
    def in_order(self) -> list[TrainerCallback]:
        return list(self._callbacks)

    def _given(self, kind: type[Part]) -> Part | None:
        return next((callback for callback in self._callbacks if isinstance(callback, kind)), None)

    def _added(self, callback: Part) -> Part:
        self._callbacks.append(callback)
        return callback
