"""Which of many things go into one batch: those of like length, so that little is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def length_buckets(lengths: Sequence[float] | np.ndarray, batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, the longest first, so that too large a batch fails at once."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size].tolist()
