"""No step is ever taken on a loss or a gradient that is not finite, on any rank.

The Trainer itself skips nothing: a NaN goes into the weights, and its log line shows 0.0 (transformers 5.23).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from qwen_term_retrieval.distributed import sum_over_ranks
from qwen_term_retrieval.trainer_callbacks.log_line import add_to_log

logger = logging.getLogger(__name__)


class NonFiniteStepsError(RuntimeError):
    """More steps had a non-finite loss or gradient than the run allows."""


class NonFiniteGuardCallback(TrainerCallback, ExportableState):
    """Skip an optimizer step on all ranks when a loss or gradient of any rank is not finite; stop after too many.

    A skipped step is a step without an update: it counts in `global_step`, and the learning rate schedule goes on.
    Weights and optimizer state are as they were. With gradient accumulation one bad micro-batch skips the whole step.
    Under an fp16 gradient scaler the gradients are the scaler's business: it overflows on purpose to find its scale.

    The number of skipped steps is in every log line, as `nonfinite_steps`, and survives a resume.

    Args:
        max_nonfinite_steps: skipped steps of the whole run after which the next one stops it.

    Raises:
        NonFiniteStepsError: on every rank, at the same step.
    """

    def __init__(self, max_nonfinite_steps: int = 25) -> None:
        self.max_nonfinite_steps = max_nonfinite_steps
        self.nonfinite_steps = 0
        self._bad_losses: torch.Tensor | int = 0

    def state(self) -> dict[str, dict[str, int]]:
        return {
            "args": {"max_nonfinite_steps": self.max_nonfinite_steps},
            "attributes": {"nonfinite_steps": self.nonfinite_steps},
        }

    def note_loss(self, loss: torch.Tensor) -> None:
        """Tell the guard of the loss of a micro-batch; nothing waits for the device."""
        self._bad_losses = self._bad_losses + (~loss.detach().isfinite()).long()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:  # a run, or a trial of a search, of its own
            self.nonfinite_steps = 0
        # The limit of this run, not that of the run whose checkpoint is resumed.
        self.max_nonfinite_steps = getattr(args, "max_nonfinite_steps", self.max_nonfinite_steps)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if model is None:
            return
        bad = torch.as_tensor(self._bad_losses, device=args.device)
        if getattr(optimizer, "scaler", None) is None:
            bad = bad + _has_nonfinite_gradient(model)
        self._bad_losses = 0
        if not int(sum_over_ranks(bad)):
            return
        self.nonfinite_steps += 1
        # An optimizer passes over a parameter without a gradient.
        for values in model.parameters():
            values.grad = None
        step = state.global_step + 1
        if self.nonfinite_steps > self.max_nonfinite_steps:
            raise NonFiniteStepsError(
                f"step {step}: the loss or a gradient is not finite. That makes {self.nonfinite_steps} skipped steps "
                f"in this run, and max_nonfinite_steps is {self.max_nonfinite_steps}. Go on from an earlier checkpoint "
                "with a lower learning_rate or max_grad_norm, or in fp32 or bf16."
            )
        if state.is_world_process_zero:
            logger.warning(
                "step %d is skipped on every rank: its loss or a gradient is not finite (skipped so far: %d)",
                step,
                self.nonfinite_steps,
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "loss" in logs:
            add_to_log(logs, state, {"nonfinite_steps": self.nonfinite_steps})


def _has_nonfinite_gradient(model: nn.Module) -> torch.Tensor | int:
    gradients = [values.grad for values in model.parameters() if values.grad is not None]
    return (~torch.nn.utils.get_total_norm(gradients).isfinite()).long() if gradients else 0
