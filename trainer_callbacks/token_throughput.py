"""How fast a run reads: tokens and pairs a second, waiting for data, use of the device, and the memory it takes."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, TrainerControl, TrainerState, TrainingArguments

from qwen_term_retrieval.distributed import gathered
from qwen_term_retrieval.models.flops import peak_flops
from qwen_term_retrieval.trainer_callbacks.log_line import add_to_log
from qwen_term_retrieval.trainer_callbacks.throughput import ThroughputCallback, number_type

_GB = 1e9


class TokenThroughputCallback(ThroughputCallback):
    """Add to every training log line how fast a text model is trained, all ranks together, the same on each.

    - `tokens_per_second`: tokens that are read or predicted, padding left out; `padding_share`: the share of padding.
    - `data_wait_share`, `tflops_per_second` and `mfu`: as of `ThroughputCallback`.
    - `peak_rss_gb`: the most memory that a process of the run has had so far; `peak_gpu_gb` on a GPU.
    """

    _tokens: torch.Tensor | int
    _flos_before: float

    def __init__(self) -> None:
        super().__init__()
        self._places = 0

    def _count(self, module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        if not module.training or not torch.is_grad_enabled():
            return
        pad_id = cast(PreTrainedConfig, module.config).pad_token_id
        for name in ("input_ids", "decoder_input_ids"):
            if name in inputs:
                self._tokens = self._tokens + (inputs[name] != pad_id).sum()
                self._places += inputs[name].numel()
        if "decoder_input_ids" in inputs:  # T5 begins with padding
            self._tokens = self._tokens + len(inputs["decoder_input_ids"])

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
        own = (float(self._tokens), float(self._places), self._step_seconds, self._waited, peak_memory_gb(args.device))
        ranks = gathered(own)
        tokens, places, step_seconds, waited = (sum(each[place] for each in ranks) for place in range(4))
        numbers = {"peak_rss_gb": max(each[4][0] for each in ranks)}
        if args.device.type == "cuda":
            numbers["peak_gpu_gb"] = max(each[4][1] for each in ranks)
        if tokens and step_seconds:
            seconds = step_seconds / len(ranks)
            numbers |= {"tokens_per_second": tokens / seconds, "padding_share": 1 - tokens / places}
            numbers["data_wait_share"] = waited / step_seconds
            flops = (state.total_flos - self._flos_before) / seconds
            if flops:
                peak = peak_flops(args.device, number_type(args, model)) * len(ranks)
                numbers |= {"tflops_per_second": flops / 1e12, "mfu": flops / peak}
        add_to_log(logs, state, {name: float(f"{number:.5g}") for name, number in numbers.items()})
        self._flos_before = state.total_flos
        self._reset()

    def _reset(self) -> None:
        super()._reset()
        self._places = 0


def peak_memory_gb(device: torch.device) -> tuple[float, float]:
    """The most that this process has had so far, in 1e9 bytes: of the machine's memory and of the GPU's."""
    gpu = torch.cuda.max_memory_allocated(device) / _GB if device.type == "cuda" else 0.0
    return peak_rss_bytes() / _GB, gpu


def peak_rss_bytes() -> int:
    """The most memory that this process has had in RAM so far, mapped files included."""
    status = Path("/proc/self/status")
    if status.is_file():  # `getrusage` of a Linux process begins with the peak of the one that started it
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
