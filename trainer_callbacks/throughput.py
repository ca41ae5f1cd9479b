"""How fast a run hears: clips, audio and tokens a second, waiting for data, and what it makes of the device."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.distributed import sum_over_ranks, world_size
from qwen_term_retrieval.models.flops import peak_flops
from qwen_term_retrieval.trainer_callbacks.log_line import add_to_log


class ThroughputCallback(TrainerCallback):
    """Add to every training log line how fast the run goes, all ranks together, the same on each.

    - `clips_per_second`, `audio_seconds_per_second`, `tokens_per_second`: what enters the model in forward passes that
      train, padding left out. Tokens are those of the text tower, phonemes or word pieces; texts from a cache have
      none. Evaluation and the gradient-free passes of GradCache do not count.
    - `data_wait_share`: the share of the time of the steps in which the loop asks for its batches.
    - `tflops_per_second` and `mfu`: the operations that the trainer counts (`floating_point_ops`), and their share of
      what the devices can do (`peak_flops`: of known GPUs the vendor's figure, else the best product measured here).

    A step lasts from asking for its batches until the optimizer has stepped. Evaluation, checkpoints, logging and
    mining lie between steps. A Trainer that does not call `note_wait` shows no `data_wait_share`, and its steps begin
    with their batches at hand.

    Example:
        >>> trainer = TermRetrievalTrainer(..., callbacks=[ThroughputCallback()])  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._frame_rate = math.nan
        self._step_began: float | None = None
        self._flos_before = 0.0
        self._clips = 0
        self._audio_seconds: torch.Tensor | float = 0.0
        self._tokens: torch.Tensor | int = 0
        self._step_seconds = 0.0
        self._waited = 0.0

    def note_wait(self, began: float) -> None:
        """Tell of batches that were asked for at `began`, by `time.perf_counter`, and are here now."""
        self._step_began = began
        self._waited += time.perf_counter() - began

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        self._reset()
        self._step_began = None
        self._flos_before = state.total_flos
        if self._hook is not None:  # of a run that an error ended
            self._hook.remove()
        if model is not None:
            self._frame_rate = float(getattr(model, "frame_rate", math.nan))
            self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        if self._step_began is None:
            self._step_began = time.perf_counter()

    # Not `on_step_end`, where the callbacks before this one may have mined for a minute.
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._step_began is None:
            return
        if args.device.type != "cpu" and (state.global_step + 1) % state.logging_steps == 0:
            # Logging waits for the device in any case; what it still computes belongs to the step.
            torch.accelerator.synchronize()
        self._step_seconds += time.perf_counter() - self._step_began
        self._step_began = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        peak = peak_flops(args.device, number_type(args, model)) if state.total_flos > self._flos_before else 0.0
        counts = [self._clips, self._audio_seconds, self._tokens, self._step_seconds, self._waited, peak]
        sums = torch.tensor([float(count) for count in counts], dtype=torch.float64)
        sums = sum_over_ranks(sums.to(args.device)) if world_size() > 1 else sums
        rates = _rates(*sums.tolist(), flops=state.total_flos - self._flos_before, ranks=world_size())
        add_to_log(logs, state, rates)
        self._flos_before = state.total_flos
        self._reset()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
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
        # Sums stay on the device, where nothing waits for them, until a log line asks.
        self._audio_seconds = self._audio_seconds + lengths_B.detach().sum() / rate
        for name, values in (inputs.get("text_inputs") or {}).items():
            if name.endswith("attention_mask"):
                self._tokens = self._tokens + values.sum()

    def _reset(self) -> None:
        self._clips, self._audio_seconds, self._tokens = 0, 0.0, 0
        self._step_seconds, self._waited = 0.0, 0.0


def _rates(
    clips: float, audio_seconds: float, tokens: float, step_seconds: float, waited: float, peak: float,
    *, flops: float, ranks: int,
) -> dict[str, float]:  # fmt: skip
    """What a log line says; all of it summed over ranks, whose steps take place at the same time."""
    if not clips or not step_seconds:
        return {}
    seconds = step_seconds / ranks
    rates = {"clips_per_second": clips / seconds, "audio_seconds_per_second": audio_seconds / seconds}
    if tokens:
        rates["tokens_per_second"] = tokens / seconds
    if waited:
        rates["data_wait_share"] = waited / step_seconds
    if peak:
        rates["tflops_per_second"] = flops / seconds / 1e12
        rates["mfu"] = flops / seconds / peak
    return {name: float(f"{rate:.5g}") for name, rate in rates.items()}


def number_type(args: TrainingArguments, model: nn.Module | None) -> torch.dtype:
    """What the matrix products of the run are computed in, whether its settings or `accelerate launch` say so."""
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return autocast.get(args.mixed_precision, getattr(model, "dtype", torch.float32))
