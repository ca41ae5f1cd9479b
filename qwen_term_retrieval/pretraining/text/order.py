"""Which pairs come when: batches of like length, a function of (seed, epoch, number), on any number of ranks.

A shuffled list of fifty million pairs would be 400 MB in every process, and torch's sampler takes five times that.
Here an epoch is a keyed permutation of the pairs (`WindowOrder`), cut into pools of 1,024 global micro-batches. Within
a pool pairs are sorted by the lengths of response and prompt, cut into batches, and the batches are shuffled: 3.8 % of
padding was seen where random batches had 54.6 %. What a pool holds follows from its number, so a run goes on in the
middle of an epoch by one integer, and builds one pool for it.

Given up: batches of one pool only are near in length to one another, and pairs that fill no whole global batch at the
end of an epoch come in another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from qwen_term_retrieval.runs.sampling import GlobalBatchSampler
from qwen_term_retrieval.tokens.mmap_pairs import MmapPairs
from qwen_term_retrieval.tokens.window_order import WindowOrder

# Responses this near in length count as equal, so that prompts can be sorted too.
_RESPONSE_STEP = 8


class MicroBatch(NamedTuple):
    """The place of a global micro-batch: all that goes to a worker."""

    epoch: int
    number: int


class PairOrder:
    """The global micro-batches of all epochs.

    Args:
        pairs: whose lengths count as they are cut.
        global_batch_size: pairs of a micro-batch, over all ranks.
        seed: of the order.
        bucketed: batches of like length; False: of any, for models that pack.
        pool_batches: global micro-batches in a pool; more of them pad less.

    Raises:
        ValueError: fewer pairs than one batch.

    Example:
        >>> order = PairOrder(pairs, 96, seed=0)                     # doctest: +SKIP
        >>> order.batch(MicroBatch(epoch=0, number=7)).shape         # doctest: +SKIP
        (96,)
    """

    def __init__(
        self, pairs: MmapPairs, global_batch_size: int, seed: int, *, bucketed: bool = True, pool_batches: int = 1024
    ):
        if len(pairs) < global_batch_size:
            raise ValueError(
                f"{len(pairs)} training pairs are fewer than one global batch of {global_batch_size}. Lower "
                "--per_device_train_batch_size or use fewer processes."
            )
        self.pairs = pairs
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.bucketed = bucketed
        self.pool_batches = pool_batches
        self._kept: tuple[tuple[int, int], np.ndarray] | None = None

    def __len__(self) -> int:
        """Global micro-batches of an epoch, the same number in each."""
        return len(self.pairs) // self.global_batch_size

    def batch(self, place: MicroBatch) -> np.ndarray:
        """Indices of the pairs of a global micro-batch, the shortest first: int64 (global_batch_size,)."""
        pool, number = divmod(place.number, self.pool_batches)
        if self._kept is None or self._kept[0] != (place.epoch, pool):
            self._kept = ((place.epoch, pool), self._pool(place.epoch, pool))
        return self._kept[1][number]

    def _pool(self, epoch: int, pool: int) -> np.ndarray:
        first = pool * self.pool_batches
        batches = min(self.pool_batches, len(self) - first)
        positions = np.arange(first, first + batches)[:, None] * self.global_batch_size
        index_P = WindowOrder(len(self.pairs), self.seed, epoch)[
            (positions + np.arange(self.global_batch_size)).ravel()
        ]
        if not self.bucketed:
            return index_P.reshape(batches, -1)
        prompt_P, response_P = self.pairs.lengths(index_P)
        # Whole keys, down to the index: what is equal in length must lie in one order everywhere.
        index_P = index_P[np.lexsort((index_P, response_P, prompt_P, response_P // _RESPONSE_STEP))]
        shuffled = np.random.default_rng((self.seed, epoch, pool)).permutation(batches)
        return index_P.reshape(batches, -1)[shuffled]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


class PairSampler(GlobalBatchSampler):
    """Gives the places of an epoch's micro-batches, one at a time: `PairBatches` makes batches of them, in a worker.

    To pass over half a million places, as a run does that is resumed, takes a tenth of a second.
    """

    def __init__(self, order: PairOrder):
        super().__init__(order.seed)
        self.order = order

    def batches(self) -> list[np.ndarray]:
        return [self.order.batch(MicroBatch(self.epoch, number)) for number in range(len(self))]

    def __iter__(self) -> Iterator[list[Any]]:
        for number in range(len(self)):
            yield [MicroBatch(self.epoch, number)]

    def __len__(self) -> int:
        return len(self.order)
