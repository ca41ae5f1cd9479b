"""Looks whether a step fits into memory, before the first of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class MemoryCheckCallback(TrainerCallback):
    """Call `check`, which raises where the run does not fit, when training begins: the model is on its device then.

    Put it before callbacks that compute, such as the mining of hard negatives.
    """

    def __init__(self, check: Callable[[], object]) -> None:
        self.check = check

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.check()
