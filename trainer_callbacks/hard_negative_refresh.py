"""Mines the hard negatives of a run anew every so many steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwen_term_retrieval.trainer_callbacks.log_line import add_to_log

logger = logging.getLogger(__name__)


class HardNegativeRefreshCallback(TrainerCallback):
    """Fill a table of hard negatives: before the first step, then every `table.refresh_steps` steps.

    Every log line tells how old the negatives in use are, as `hard_neg_age` in steps. A resumed run finds the minings
    it needs on disk; those that are missing (the folder was cleared) are made by the resumed model, and said. Minings
    of other clips or another glossary are refused.

    Args:
        table: what the collator reads, a `HardNegativeTable` of training/negatives.
        mine: gives int32 (clips, K) by the model as it is; every rank calls it at the same step.
    """

    def __init__(self, table: Any, mine: Callable[[], NDArray[np.int32]]) -> None:
        self.table = table
        self.mine = mine

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.trial_name:  # a trial of a search has a folder and settings of its own
            folder = Path(str(args.output_dir), state.trial_name, "hard_negatives")
            self.table.begin(folder, args.hard_neg_refresh_steps)  # type: ignore[attr-defined]
        if state.global_step == 0:
            self._refresh(state, [0])
            return
        self.table.check_meaning()
        missing = [step for step in self.table.needed_from(state.global_step) if not self.table.is_mined(step)]
        _wait_for_all()
        if missing:
            steps = ", ".join(map(str, missing))
            logger.warning("the hard negatives mined at step %s are gone: they are mined now instead", steps)
            self._refresh(state, missing)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.table.refresh_steps == 0 and state.global_step < state.max_steps:
            self._refresh(state, [state.global_step])

    def _refresh(self, state: TrainerState, steps: list[int]) -> None:
        """Mine once, for all of `steps`."""
        started = time.perf_counter()
        table_CK = self.mine()
        if state.is_world_process_zero:
            for step in steps:
                self.table.write(step, table_CK)
            mined = table_CK[(table_CK >= 0).any(axis=1)]
            logger.info(
                "hard negatives mined at step %d: %.1f terms a clip for %d clips, %.1f s",
                *(state.global_step, (mined >= 0).sum(axis=1).mean() if len(mined) else 0.0, len(mined)),
                time.perf_counter() - started,
            )
        _wait_for_all()
        self.table.reopen()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "loss" in logs:
            step = max(0, state.global_step - 1)
            add_to_log(logs, state, {"hard_neg_age": step - self.table.mined_at(step)})


def _wait_for_all() -> None:
    """No rank may read a mining that rank 0 has not written yet."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
