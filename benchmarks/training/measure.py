"""How rows of `benchmarks.training` are timed in turns, counted, compared, and profiled where a target is missed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from qwen_term_retrieval.models.flops import count_flops, peak_flops

PROFILED_OPERATORS = 10


class OutputsDifferError(RuntimeError):
    """Ourselves and the peer do not compute the same thing, so their times say nothing."""


def largest_difference(ours: torch.Tensor, stock: torch.Tensor, tolerance: float, what: str) -> float:
    """Largest absolute difference of two tensors of one shape.

    Raises:
        OutputsDifferError: the shapes differ, or a value does by more than `tolerance`, or one is not finite.
    """
    if ours.shape != stock.shape:
        raise OutputsDifferError(f"{what}: ours is {tuple(ours.shape)}, the peer's is {tuple(stock.shape)}")
    difference = (ours.double() - stock.double().to(ours.device)).abs().max().item()
    if not difference <= tolerance:
        raise OutputsDifferError(f"{what}: outputs differ by {difference:.2g}; {tolerance:.2g} is allowed")
    return difference


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def encoder_flops(
    encoder: PreTrainedModel, run: Callable[[], torch.Tensor], weights: Sequence[torch.Tensor] = ()
) -> int:
    """`count_flops` with attention as matrix products: the counter knows no fused attention on a CPU (torch 2.13)."""
    implementation = encoder.config._attn_implementation
    encoder.set_attn_implementation("eager")
    try:
        return count_flops(run, weights)
    finally:
        encoder.set_attn_implementation(implementation)


def top_operators(run: Callable[[], object], device: torch.device) -> str:
    """The operators that one run spends most time in, as `torch.profiler` lists them."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        run()
        synchronize(device)
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=PROFILED_OPERATORS, max_name_column_width=50)
    return str(table)


@dataclass
class Row:
    """A way to do some work: seconds of each repetition, and the operations that one takes (0: not counted).

    `beside` names the row of ours that does the same work.
    """

    does: str
    beside: str = ""
    seconds: list[float] = field(default_factory=list)
    flops: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def to_json(self, rows: Mapping[str, Row], peak: float) -> dict[str, Any]:
        found: dict[str, Any] = {"does": self.does, "median_seconds": self.median, "seconds": self.seconds}
        if self.beside:
            found["ours_is_faster_by"] = self.median / rows[self.beside].median
        if self.flops:
            # The time that the device would need if it did nothing but these operations, at its peak.
            floor = self.flops / peak
            found |= {"flops": self.flops, "floor_seconds": floor, "of_peak": floor / self.median}
        return found


def take_turns(
    rows: Mapping[str, Row],
    runs: Mapping[str, Callable[[], object]],
    repetitions: int,
    device: torch.device,
    warm_up: bool = True,
) -> None:
    """Time each row's run so many times; repetitions interleave, after one of each that is not counted."""
    for repetition in range(repetitions + warm_up):
        for name, run in runs.items():
            synchronize(device)
            started = time.perf_counter()
            run()
            synchronize(device)
            if repetition >= warm_up:
                rows[name].seconds.append(time.perf_counter() - started)


def comparison(
    rows: Mapping[str, Row],
    *,
    ours: str,
    against: str,
    at_least: float,
    device: torch.device,
    dtype: torch.dtype,
    profiled: Callable[[], object],
) -> dict[str, Any]:
    """What a part found: its rows, how much faster ours is than the peer and, where that is too little, a profile.

    Args:
        at_least: the ratio that is asked for.
        dtype: of the arithmetic, for the device's peak.
        profiled: one run of ours, for the profile.
    """
    peak = peak_flops(device, dtype)
    ratio = rows[against].median / rows[ours].median
    found = {
        "rows": {name: row.to_json(rows, peak) for name, row in rows.items()},
        "peak_flops_per_second": peak,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device_name(device),
        **verdict(ratio, at_least=at_least),
        "judged": f"{ours}, against {against}",
    }
    return found if found["met"] else found | {"profile": top_operators(profiled, device)}


def verdict(value: float, *, at_least: float | None = None, below: float | None = None) -> dict[str, Any]:
    """A measured value beside what is asked of it."""
    if below is not None:
        return {"value": value, "asked_below": below, "met": value < below}
    return {"value": value, "asked_at_least": at_least, "met": at_least is not None and value >= at_least}


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
