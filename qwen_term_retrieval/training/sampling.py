"""Which clip comes when: a pure function of (seed, epoch, position), the same for any number of ranks.

Each position of the order carries the clip's index and a `draw`, a number from which everything random about that
visit (how its spans are jittered) is derived. Nothing depends on the state of a random generator, so skipping to a
position on resume costs nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Visit(NamedTuple):
    """One clip at one position of an epoch."""

    clip: int
    draw: int


class LengthBucketedSampler(Sampler[Visit]):
    """Shuffles clips so that neighbours have about the same length, and global batches come in random order.

    The shuffled epoch is cut into pools of `pool_batches` global batches, each pool is sorted by length, and its
    batches are shuffled. What is left after the last whole batch closes the epoch; with `dataloader_drop_last` it is
    left out, and other clips are left out in the next epoch.

    Args:
        lengths: of each clip, in any unit.
        global_batch_size: clips in one optimizer micro-step over all ranks.
        seed: of the order; `set_epoch` changes it from epoch to epoch.

    Raises:
        ValueError: fewer clips than one global batch.
    """

    def __init__(
        self, lengths: Sequence[float] | np.ndarray, global_batch_size: int, seed: int, pool_batches: int = 16
    ):
        self.lengths = np.asarray(lengths)
        if len(self.lengths) < global_batch_size:
            raise ValueError(
                f"{len(self.lengths)} training clips are fewer than one global batch of {global_batch_size}. "
                "Lower --per_device_train_batch_size or use fewer processes."
            )
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.pool_batches = pool_batches
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self) -> np.ndarray:
        """Clip indices of the current epoch: int64 (num_clips,)."""
        generator = np.random.default_rng((self.seed, self.epoch))
        shuffled = generator.permutation(len(self.lengths))
        num_batches = len(shuffled) // self.global_batch_size
        whole, rest = np.split(shuffled, [num_batches * self.global_batch_size])
        pool_size = self.pool_batches * self.global_batch_size
        pools = [whole[first : first + pool_size] for first in range(0, len(whole), pool_size)]
        by_length = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = by_length.reshape(num_batches, self.global_batch_size)
        return np.concatenate([generator.permutation(batches).ravel(), rest])

    def __iter__(self) -> Iterator[Visit]:
        draws = np.random.default_rng((self.seed, self.epoch, 1)).integers(1 << 62, size=len(self))
        for index, draw in zip(self.order().tolist(), draws.tolist(), strict=True):
            yield Visit(index, draw)

    def __len__(self) -> int:
        return len(self.lengths)
