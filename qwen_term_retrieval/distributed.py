"""The ranks of a run: rows of all of them with gradients, and what they do or say together.

A contrastive loss gathers rows so that N ranks equal one.

On each rank it is the loss of *its* rows against the rows of all ranks. The backward pass of `gather_rows` sums, over
ranks, the gradient that each rank's loss sends to a row, and returns it to the rank the row came from. With DDP's mean
over ranks this gives the gradient of the loss on the whole global batch; no world-size factor is needed.

Only public collectives are used; `torch.distributed.nn` carries a deprecation warning since torch 2.9.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F

T = TypeVar("T")


class OtherRankError(RuntimeError):
    """Another process of the run failed; the message says which, and on what."""


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def end_ranks() -> None:
    """End this process where it is one of several ranks: the last thing that a script does when all went well.

    A rank now and then aborts while its group or its interpreter is taken down (torch 2.13 with gloo: "terminate called
    without an active exception"), after all was done, and takes the exit status of the run with it. So what is
    registered for the exit is done here, and the rest is left to the operating system.
    """
    if world_size() > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


class _GatherEqualRows(torch.autograd.Function):
    """(B, …) on each rank -> (world_size, B, …) on every rank; the same B everywhere."""

    @staticmethod
    def forward(ctx, rows):
        gathered = rows.new_empty((world_size(), *rows.shape))
        dist.all_gather(list(gathered.unbind(0)), rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, grad):
        # all_reduce and a slice, not reduce_scatter: gloo has no reduce_scatter.
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[rank()]


def row_counts(rows: torch.Tensor) -> list[int]:
    """How many rows each rank holds, in rank order."""
    if world_size() == 1:
        return [len(rows)]
    counts = torch.zeros(world_size(), dtype=torch.long, device=rows.device)
    counts[rank()] = len(rows)
    dist.all_reduce(counts)
    return counts.tolist()


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Concatenate the rows of all ranks, in rank order, differentiably; row counts may differ between ranks.

    Args:
        rows: (B_local, …); trailing sizes must agree on every rank.

    Returns:
        (B_global, …); the rows themselves where there is one rank. All ranks must call it, and those with a gradient
        must run its backward pass.
    """
    if world_size() == 1:
        return rows
    counts = row_counts(rows)
    padding = max(counts) - len(rows)
    padded = F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, padding))
    gathered = _GatherEqualRows.apply(padded)
    return torch.cat([part[:count] for part, count in zip(gathered.unbind(0), counts, strict=True)])


def sum_over_ranks(counts: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor without gradient over all ranks; of one shape on every rank."""
    if world_size() == 1:
        return counts
    total = counts.detach().clone()
    dist.all_reduce(total)
    return total


def gathered(value: Any) -> list[Any]:
    """The value of each rank, in their order; every rank calls it."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def deferred(do: Callable[[], T]) -> Callable[[], T]:
    """`do`, done now where ranks take turns: gives its result, or raises its error, when called for `on_every_rank`."""
    try:
        done = do()
    except Exception as error:
        failure = error

        def fail() -> T:
            raise failure

        return fail
    return lambda: done


def on_every_rank(do: Callable[[], T]) -> T:
    """What `do`, which talks to no other rank, gives here, once it is over everywhere; its error on all if on one.

    Raises:
        OtherRankError: it failed on another rank, and not here.
    """
    failure: Exception | None = None
    try:
        done = do()
    except Exception as error:  # raised below, when the others know
        failure = error
    told = gathered(failure and f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for other, message in enumerate(told):
        if message is not None:
            raise OtherRankError(f"rank {other} failed: {message}")
    return done
