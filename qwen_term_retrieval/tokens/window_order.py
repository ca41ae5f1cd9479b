"""Which window comes when: a pure function of (seed, epoch, position) that needs no memory, however many there are.

A shuffled list of the windows of 100 GB of tokens would be a gigabyte in every process. Instead a position goes through
a keyed permutation: a Feistel network over pairs (left, right) with left · width + right, walked on until it falls
below the count (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). The grid of pairs is less than one
row larger than the count, so a second step is rare.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

_NUM_ROUNDS = 6
_POSITIONS_AT_ONCE = 4096


class WindowOrder:
    """A shuffle of `range(count)`: `order[positions]` gives the window at each position.

    >>> order = WindowOrder(5, seed=0)
    >>> sorted(order[np.arange(5)].tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, count: int, seed: int, epoch: int = 0):
        if not 0 < count < 1 << 62:
            raise ValueError(f"count={count}; an order needs at least one window")
        self.count = count
        self._num_left = math.isqrt(count - 1) + 1
        self._num_right = -(-count // self._num_left)
        self._keys = np.random.SeedSequence((seed, epoch)).generate_state(_NUM_ROUNDS, np.uint64)

    def __getitem__(self, positions_P: np.ndarray) -> np.ndarray:
        """Windows at these positions: int64 (P,)."""
        windows_P = self._permute(np.asarray(positions_P).astype(np.uint64))
        while (outside_P := windows_P >= self.count).any():
            windows_P[outside_P] = self._permute(windows_P[outside_P])
        return windows_P.astype(np.int64)

    def _permute(self, cells_P: np.ndarray) -> np.ndarray:
        left_P, right_P = np.divmod(cells_P, np.uint64(self._num_right))
        for number, key in enumerate(self._keys):
            if number % 2:
                right_P = (right_P + _mix(left_P, key)) % np.uint64(self._num_right)
            else:
                left_P = (left_P + _mix(right_P, key)) % np.uint64(self._num_left)
        return left_P * np.uint64(self._num_right) + right_P


def _mix(values_P: np.ndarray, key: np.uint64) -> np.ndarray:
    """Hash to 32 bits: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014) over the values and a key."""
    values_P = values_P ^ key
    values_P = (values_P ^ (values_P >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values_P = (values_P ^ (values_P >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values_P >> np.uint64(32)


class WindowSampler:
    """Sampler of a DataLoader over windows: shuffled anew each epoch, shared out equally over ranks.

    Position p of an epoch is the same window on any number of ranks; rank r of n takes positions r, r + n, …, and what
    is left when not every rank can have one more is passed over in that epoch. To resume, give `set_epoch` the number
    of windows that all ranks together have consumed.

    >>> sampler = WindowSampler(10, seed=0, rank=1, num_ranks=2)
    >>> rest = list(sampler)[3:]
    >>> sampler.set_epoch(0, position=6)
    >>> list(sampler) == rest
    True

    Raises:
        ValueError: a rank that is not one of `num_ranks`, or fewer windows than ranks.
    """

    def __init__(self, num_windows: int, *, seed: int = 0, shuffle: bool = True, rank: int = 0, num_ranks: int = 1):
        if not 0 <= rank < num_ranks:
            raise ValueError(f"rank={rank} of num_ranks={num_ranks}; ranks count from 0")
        if num_windows < num_ranks:
            raise ValueError(f"{num_windows} windows cannot be shared over {num_ranks} ranks")
        self.num_windows = num_windows
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.num_ranks = num_ranks
        self.set_epoch(0)

    def set_epoch(self, epoch: int, position: int = 0) -> None:
        """Go to the window number `position` of an epoch, counted over all ranks."""
        if not 0 <= position <= self.num_windows:
            raise ValueError(f"position={position}; an epoch has {self.num_windows} windows")
        self.epoch = epoch
        self.position = position

    def __iter__(self) -> Iterator[int]:
        order = WindowOrder(self.num_windows, self.seed, self.epoch)
        for done in range(0, len(self), _POSITIONS_AT_ONCE):
            steps_P = np.arange(done, min(done + _POSITIONS_AT_ONCE, len(self)))
            positions_P = self.position + self.rank + steps_P * self.num_ranks
            yield from (order[positions_P] if self.shuffle else positions_P).tolist()

    def __len__(self) -> int:
        """Windows of this rank that are left in the epoch."""
        return (self.num_windows - self.position) // self.num_ranks
