"""Whether a step of a run fits into memory, said before the first. Evaluation and mining keep no graph: not counted.

For any trainer: it measures small steps by `peak_memory` and gives what its largest comes to to `require_memory`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qwen_term_retrieval.distributed import gathered, world_size
from qwen_term_retrieval.runs.checkpoints.random_state import RandomState

logger = logging.getLogger(__name__)

GB = 1e9
# Shares of the free memory. Allocators leave gaps: PyTorch's on a GPU small ones; on a CPU, glibc's heap was seen to
# hold twice the tensors of a step, and more with checkpointing.
_WARNED_ABOVE = {"cuda": 0.85, "cpu": 0.5}
# States of an optimizer in numbers a trained parameter; every other one keeps two, as Adam does.
_OPTIMIZER_STATES = {"sgd": 0, "adafactor": 0, "adagrad": 1, "rmsprop": 1, "lion": 1}


class NotEnoughMemoryError(RuntimeError):
    """A step of the run needs more memory than there is."""


@dataclass
class StepMemory:
    """Peak bytes of a rank in a step, by what they are for; its "parameters" are there already.

    Attributes:
        batch, in_chunks: what the step is over, such as "256 clips", and " in chunks of 32" or nothing.
        remedies: free bytes -> settings that would fit, with what they would need.
    """

    batch: str
    in_chunks: str
    parts: dict[str, float]
    remedies: Callable[[float], Iterable[str]]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def to_come(self) -> float:
        return self.total - self.parts["parameters"]

    def table(self) -> str:
        rows = {**self.parts, "sum": self.total}
        return "\n".join(f"  {name:<34}{size / GB:>8.2f} GB" for name, size in rows.items())


def require_memory(measure: Callable[[], StepMemory], device: torch.device, few: str, advice: str) -> StepMemory:
    """Say in one line what a step needs, or refuse a run that it does not fit; every rank calls it.

    Where measuring runs out of memory, it was on `few`, such as "4 clips", and `advice` says what would help.

    Raises:
        NotEnoughMemoryError: on every rank, if it is too much on any. Names the parts, and what would fit.
    """
    free, need = free_memory(device), None
    try:
        need = measure()
    except torch.OutOfMemoryError as error:
        logger.error("memory: not even %s fit: %s", few, str(error).splitlines()[0])
    fits = all(gathered(need is not None and need.to_come <= free))
    if need is None or not fits:
        raise NotEnoughMemoryError("this run does not fit" + _refusal(need, free, device, few, advice))
    line = f"memory: a step over {need.batch}{need.in_chunks} needs about {need.total / GB:.2f} GB a rank"
    if free < float("inf"):
        line += f", {need.to_come / GB:.2f} of them still to come; {free / GB:.2f} GB are free"
    if need.to_come > _WARNED_ABOVE.get(device.type, 1.0) * free:
        logger.warning("%s. That is near the limit:\n%s", line, need.table())
    else:
        logger.info(line)
    return need


def _refusal(need: StepMemory | None, free: float, device: torch.device, few: str, advice: str) -> str:
    if need is None or free == float("inf"):
        return f": a rank ran out of memory on {few}. {advice}"
    if need.to_come <= free:
        return " into the memory of another rank, which says what it needs"
    return (
        f": a step over {need.batch} needs about {need.to_come / GB:.2f} GB beside the model, and {free / GB:.2f} GB "
        f"are free on {device}\n{need.table()}\n"
        + "".join(f"  {remedy}\n" for remedy in need.remedies(free))
        + "  check_memory False starts it all the same"
    )


def free_memory(device: torch.device) -> float:
    """Bytes that this process may still take on the device, infinite where it does not say.

    On a CPU the ranks share what the machine or the container has left.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return float("inf")
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    return min(psutil.virtual_memory().available, _left_in_cgroup()) / ranks_here


def _left_in_cgroup(root: Path = Path("/sys/fs/cgroup")) -> float:
    """What a container's limit leaves; file pages that the kernel can drop do not count as used."""
    version_1 = [f"memory/memory.{name}" for name in ("limit_in_bytes", "usage_in_bytes", "stat")]
    for limit, usage, statistics in (("memory.max", "memory.current", "memory.stat"), version_1):
        with contextlib.suppress(OSError, ValueError):  # no such file, or the word "max"
            left = int((root / limit).read_text()) - int((root / usage).read_text())
            lines = dict(line.split() for line in (root / statistics).read_text().splitlines())
            return left + int(lines.get("total_inactive_file", lines.get("inactive_file", 0)))
    return float("inf")


def model_memory(model: nn.Module, optimizer: Any) -> dict[str, float]:
    """Bytes that a run holds from step to step, under an `optim` of `TrainingArguments`."""
    trained = sum(values.nbytes for values in model.parameters() if values.requires_grad)
    name = str(getattr(optimizer, "value", optimizer))
    return {
        "parameters": sum(values.nbytes for values in [*model.parameters(), *model.buffers()]),
        "gradients": trained * (2 if world_size() > 1 else 1),  # DDP holds them once more, in its buckets
        "optimizer": trained * next((count for known, count in _OPTIMIZER_STATES.items() if name.startswith(known)), 2),
    }


def peak_memory(model: nn.Module, loss_of: Callable[[int], torch.Tensor], size: int) -> Callable[[float], float]:
    """Run a loss of `size` inputs and of twice as many, forward and backward: the line through them gives any number's.

    Gradients are there from the start and not counted; they, buffers, mode and random states are left as they were.
    """
    was_training, peaks = model.training, []
    buffers = {values: values.clone() for values in model.buffers()}
    before = {values: values.grad for values in model.parameters() if values.requires_grad}
    with RandomState.take(next(model.parameters()).device).replayed():
        try:
            model.train()
            for values in before:
                values.grad = torch.zeros_like(values)
            for inputs in (size, 2 * size):
                with LiveMemory() as live:
                    loss_of(inputs).backward()
                peaks.append(live.peak)
        finally:
            model.train(was_training)
            for values, gradient in before.items():
                values.grad = gradient
            for buffer, was in buffers.items():  # such as what batch normalisation has counted
                buffer.copy_(was)
    each = max(0.0, (peaks[1] - peaks[0]) / size)
    return lambda inputs: max(0.0, peaks[1] + each * (inputs - 2 * size))


class LiveMemory(TorchDispatchMode):
    """Count the bytes of new tensors in a `with` block: those alive `now`, and their `peak`.

    Views are not counted twice; what a kernel needs inside itself, and what an allocator rounds up to, is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _storages((args, kwargs))
        outputs = func(*args, **(kwargs or {}))
        for key, storage in _storages(outputs).items():
            if key not in given and key not in self._counted:
                self._counted.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._drop, key, storage.nbytes())
        return outputs

    def _drop(self, key: int, num_bytes: int) -> None:
        self._counted.remove(key)
        self.now -= num_bytes


def _storages(values: Any) -> dict[int, torch.UntypedStorage]:
    found = (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))
    return {storage._cdata: storage for storage in found}
