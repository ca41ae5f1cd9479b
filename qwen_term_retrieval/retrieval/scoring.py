"""Scores of windows against a bank, a block of the bank at a time: no table of all of them is ever in memory.

Shapes: Q queries (clips), W windows, N terms of the bank, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

BLOCK_SCORES = 1 << 24  # 64 MiB of float32


def blocks_of_scores(
    query_QWD: torch.Tensor,
    bank_ND: torch.Tensor,
    mask_QW: torch.Tensor | None = None,
    *,
    block_scores: int | None = None,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of the bank, and what every window scores with each of them, float32 (Q, W, rows), to be written on.

    Args:
        query_QWD: on the device that computes, in the type to compute in.
        bank_ND: on any device; a block of it visits the queries'.
        mask_QW: bool, True where a window is real; the others score -inf.
        block_scores: in one block, at most; `BLOCK_SCORES`.
    """
    hidden_QW1 = None if mask_QW is None else ~mask_QW.to(query_QWD.device)[:, :, None]
    step = max(1, (block_scores or BLOCK_SCORES) // max(1, query_QWD.shape[0] * query_QWD.shape[1]))
    for first in range(0, len(bank_ND), step):
        rows = slice(first, first + step)
        block_ND = bank_ND[rows].to(query_QWD.device, query_QWD.dtype)
        scores_QWN = (query_QWD.flatten(0, 1) @ block_ND.T).float().unflatten(0, query_QWD.shape[:2])
        yield rows, scores_QWN if hidden_QW1 is None else scores_QWN.masked_fill_(hidden_QW1, -torch.inf)
