"""What all ranks do or say together, so that none goes on alone and leaves the others waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from qwen_term_retrieval.losses.distributed import world_size

T = TypeVar("T")


class OtherRankError(RuntimeError):
    """Another process of the run failed; the message says which, and on what."""


def gathered(value: Any) -> list[Any]:
    """The value of each rank, in their order; every rank calls it."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def outcome_of(do: Callable[[], T]) -> Callable[[], T]:
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
