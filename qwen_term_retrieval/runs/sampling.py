"""Which clip comes when: a pure function of (seed, epoch, position), the same for any number of ranks.

Each position of the order carries the clip's index, a `draw` from which everything random about that visit (how its
spans are jittered, what noise is added) is derived, and the optimizer step it belongs to. Nothing depends on the state
of a random generator: a run resumes from its step number alone.

`LengthBucketedSampler` gives batches of one size, `DurationBatchSampler` batches of one budget of audio seconds. Both
give each rank an equal share of each global batch: two ranks with b clips see what one with 2b does.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from transformers import TrainingArguments


class Visit(NamedTuple):
    """One clip at one position of an epoch; `step` counts optimizer steps from the start of the run, from 0."""

    clip: int
    draw: int
    step: int = 0


class GlobalBatchSampler(Sampler[list[Visit]]):
    """The global batches of an epoch, of each the share of one rank.

    Args:
        seed: of the order; `set_epoch` changes it from epoch to epoch.
        rank: whose share of each global batch to give.
        num_ranks: that share the global batches equally.
        batches_per_step: global batches of one optimizer step, as `gradient_accumulation_steps` has it.

    Raises:
        ValueError: no such rank.
    """

    def __init__(self, seed: int, *, rank: int = 0, num_ranks: int = 1, batches_per_step: int = 1):
        if not 0 <= rank < num_ranks:
            raise ValueError(f"rank {rank} of {num_ranks} ranks")
        self.seed = seed
        self.rank = rank
        self.num_ranks = num_ranks
        self.batches_per_step = batches_per_step
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @abstractmethod
    def batches(self) -> list[np.ndarray]:
        """Clip indices of the global batches of the current epoch, each int64 (batch,)."""

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch, the same number in each."""

    def __iter__(self) -> Iterator[list[Visit]]:
        # Draws depend on the position alone, not on how the order is cut into batches.
        generator = np.random.default_rng((self.seed, self.epoch, 1))
        # An epoch's last step takes what is left of it, as the Trainer has it (transformers 5.23).
        first_step = self.epoch * -(-len(self) // self.batches_per_step)
        for number, batch in enumerate(self.batches()):
            step = first_step + number // self.batches_per_step
            draws = generator.integers(1 << 62, size=len(batch)).tolist()
            visits = [Visit(clip, draw, step) for clip, draw in zip(batch.tolist(), draws, strict=True)]
            share = len(visits) // self.num_ranks
            yield visits[self.rank * share : (self.rank + 1) * share]


class LengthBucketedSampler(GlobalBatchSampler):
    """Shuffles clips so that neighbours have about the same length, and global batches come in random order.

    The shuffled epoch is cut into pools of `pool_batches` global batches, each pool is sorted by length, and its
    batches are shuffled. What is left after the last whole batch is left out, other clips in the next epoch.

    Args:
        lengths: of each clip, in any unit.
        global_batch_size: clips in one optimizer micro-step over all ranks.
        seed: of the order.
        rank, num_ranks, batches_per_step: see `GlobalBatchSampler`.
        pool_batches: global batches in a pool; more of them pad less and shuffle worse.

    Raises:
        ValueError: fewer clips than one global batch, or one that the ranks cannot share equally.
    """

    def __init__(
        self,
        lengths: Sequence[float] | np.ndarray,
        global_batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        batches_per_step: int = 1,
        pool_batches: int = 16,
    ):
        super().__init__(seed, rank=rank, num_ranks=num_ranks, batches_per_step=batches_per_step)
        self.lengths = np.asarray(lengths)
        if global_batch_size % num_ranks:
            raise ValueError(f"{num_ranks} processes cannot share batches of {global_batch_size} clips equally")
        if len(self.lengths) < global_batch_size:
            raise ValueError(
                f"{len(self.lengths)} training clips are fewer than one global batch of {global_batch_size}. "
                "Lower --per_device_train_batch_size or use fewer processes."
            )
        self.global_batch_size = global_batch_size
        self.pool_batches = pool_batches

    def order(self) -> np.ndarray:
        """Clip indices of the current epoch, those that are left out at its end: int64 (num_clips,)."""
        generator = np.random.default_rng((self.seed, self.epoch))
        shuffled = generator.permutation(len(self.lengths))
        whole, rest = np.split(shuffled, [len(self) * self.global_batch_size])
        pool_size = self.pool_batches * self.global_batch_size
        pools = [whole[first : first + pool_size] for first in range(0, len(whole), pool_size)]
        by_length = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = by_length.reshape(len(self), self.global_batch_size)
        return np.concatenate([generator.permutation(batches).ravel(), rest])

    def batches(self) -> list[np.ndarray]:
        return list(self.order()[: len(self) * self.global_batch_size].reshape(len(self), self.global_batch_size))

    def __len__(self) -> int:
        return len(self.lengths) // self.global_batch_size


class DurationBatchSampler(GlobalBatchSampler):
    """Batches within a budget of seconds, padding included: few clips where they are long, many where they are short.

    Clips are sorted by length once and cut into buckets. All batches of a bucket have one size, set by its longest
    clip, so that every epoch has the same number of batches. An epoch shuffles the clips of each bucket, then the
    batches. The few clips that do not fill a bucket's last batch are left out, others in the next epoch.

    Args:
        durations: of each clip, in seconds.
        max_batch_seconds: of a global batch, over all ranks: its number of clips times the longest of them.
        seed: of the order.
        rank, num_ranks, batches_per_step: see `GlobalBatchSampler`.
        divisible_by: the size of a global batch is a multiple of it, so that batches are the same on any number of
            ranks that divides it.
        bucket_batches: batches in a bucket; more of them shuffle better and pad more.

    Raises:
        ValueError: `num_ranks` does not divide `divisible_by`, too few clips, or too long ones.
    """

    def __init__(
        self,
        durations: Sequence[float] | np.ndarray,
        max_batch_seconds: float,
        seed: int,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        divisible_by: int = 8,
        batches_per_step: int = 1,
        bucket_batches: int = 32,
    ):
        super().__init__(seed, rank=rank, num_ranks=num_ranks, batches_per_step=batches_per_step)
        if divisible_by % num_ranks:
            raise ValueError(
                f"{num_ranks} processes cannot share batches of a multiple of {divisible_by} clips equally; "
                f"use a number of processes that divides {divisible_by}"
            )
        if not (np.isfinite(durations).all() and (np.asarray(durations) > 0).all() and max_batch_seconds > 0):
            raise ValueError("durations and max_batch_seconds must be positive numbers of seconds")
        if len(durations) < divisible_by:
            raise ValueError(f"{len(durations)} training clips are fewer than the smallest batch of {divisible_by}")
        self.divisible_by = divisible_by
        self._buckets = list(_buckets(np.asarray(durations), max_batch_seconds, divisible_by, bucket_batches))

    def batches(self) -> list[np.ndarray]:
        generator = np.random.default_rng((self.seed, self.epoch))
        batches = []
        for clips, batch_size in self._buckets:
            shuffled = generator.permutation(clips)[: len(clips) // self.divisible_by * self.divisible_by]
            batches += np.split(shuffled, range(batch_size, len(shuffled), batch_size))
        return [batches[number] for number in generator.permutation(len(batches))]

    def __len__(self) -> int:
        return sum(-(-(len(clips) // self.divisible_by * self.divisible_by) // size) for clips, size in self._buckets)


def batch_sampler(
    durations: Sequence[float] | np.ndarray, args: TrainingArguments, clips_per_rank: int
) -> GlobalBatchSampler:
    """The order that the settings of a run ask for: within `max_batch_seconds`, or batches of one size.

    Args:
        durations: of each clip, in seconds.
        args: the run.
        clips_per_rank: in a micro-batch, where batches have one size.
    """
    seed = args.seed if args.data_seed is None else args.data_seed
    share = {"rank": args.process_index, "num_ranks": args.world_size}
    share["batches_per_step"] = args.gradient_accumulation_steps
    max_batch_seconds = getattr(args, "max_batch_seconds", None)
    if max_batch_seconds is None:
        return LengthBucketedSampler(durations, clips_per_rank * args.world_size, seed, **share)
    divisible_by = math.lcm(8, args.world_size)
    return DurationBatchSampler(durations, max_batch_seconds, seed, divisible_by=divisible_by, **share)


def _buckets(
    durations: np.ndarray, max_batch_seconds: float, divisible_by: int, bucket_batches: int
) -> Iterator[tuple[np.ndarray, int]]:
    """(clip indices, batch size) of each bucket, the longest clips first."""
    order = np.argsort(-durations, kind="stable")
    while len(order):
        longest = float(durations[order[0]])
        batch_size = int(max_batch_seconds / longest) // divisible_by * divisible_by
        if not batch_size:
            raise ValueError(
                f"{divisible_by} clips of {longest:.1f} s do not fit into max_batch_seconds {max_batch_seconds:g}; "
                f"allow {divisible_by * longest:.0f}, or leave out long clips"
            )
        num_clips = batch_size * bucket_batches
        if len(order) - num_clips < divisible_by:  # what is left would never fill a batch
            num_clips = len(order)
        yield order[:num_clips], batch_size
        order = order[num_clips:]
