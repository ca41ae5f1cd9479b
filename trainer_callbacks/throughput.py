"""How fast a run hears: clips and seconds of audio a second, and seconds of audio in all."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SAMPLING_RATE = 16_000


class ThroughputCallback(TrainerCallback):
    """Add `clips_per_second` and `audio_seconds_per_second` to every training log line.

    Clips are counted where they enter the model, in forward passes that train: evaluation and the gradient-free passes
    of GradCache do not count. Numbers are for all ranks together, taken as this rank's times their number; batches are
    of one size on every rank. The time between two log lines is wall time, data loading included, evaluation and
    checkpoints not.

    Example:
        >>> trainer = TermRetrievalTrainer(..., callbacks=[ThroughputCallback()])  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._frame_rate = math.nan
        self._clips = 0
        self._audio_seconds: torch.Tensor | float = 0.0
        self._training_seconds = 0.0
        self._step_ended: float | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        self._reset()
        self._step_ended = time.perf_counter()
        if model is not None and self._hook is None:
            self._frame_rate = float(getattr(model, "frame_rate", math.nan))
            self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.perf_counter()
        if self._step_ended is not None:
            self._training_seconds += now - self._step_ended
        self._step_ended = now

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs or not self._clips or not self._training_seconds:
            return
        ranks = args.world_size
        rates = {
            "clips_per_second": round(ranks * self._clips / self._training_seconds, 2),
            "audio_seconds_per_second": round(ranks * float(self._audio_seconds) / self._training_seconds, 2),
        }
        logs.update(rates)
        # The Trainer has put a copy of the line into its history before it calls back (transformers 5.23).
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(rates)
        self._reset()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._step_ended = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._step_ended = time.perf_counter()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _count(self, module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        if not module.training or not torch.is_grad_enabled():
            return
        if inputs.get("num_samples_B") is not None:
            lengths_B, rate = inputs["num_samples_B"], float(SAMPLING_RATE)
        elif inputs.get("num_frames_B") is not None:
            lengths_B, rate = inputs["num_frames_B"], self._frame_rate
        else:
            return
        self._clips += len(lengths_B)
        # Stays on the device, where nothing waits for it, until a log line asks.
        self._audio_seconds = self._audio_seconds + lengths_B.detach().sum() / rate

    def _reset(self) -> None:
        self._clips, self._audio_seconds, self._training_seconds = 0, 0.0, 0.0
