"""Scores of windows against a bank, a block of the bank at a time: no table of all of them is ever in memory.

Shapes: Q or B queries (clips), W windows, N terms of the bank, K results, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class BestTerms:
    """The best terms so far and their rows, (B, K) each, best first. A repeat of a term stands last, scored -inf."""

    scores: torch.Tensor
    terms: torch.Tensor
    rows: torch.Tensor
    aliases: bool

    @classmethod
    def empty(cls, num_queries: int, device: torch.device, *, aliases: bool) -> BestTerms:
        nothing = torch.zeros(num_queries, 0, dtype=torch.int64, device=device)
        return cls(nothing.float(), nothing, nothing, aliases)

    def merge(self, scores_BN: torch.Tensor, terms_BN: torch.Tensor, rows_BN: torch.Tensor, keep: int) -> BestTerms:
        top_BK = scores_BN.topk(min(keep, scores_BN.shape[1]), dim=1).indices.sort(dim=1).values
        best = BestTerms(
            torch.cat([self.scores, scores_BN.gather(1, top_BK)], dim=1),
            torch.cat([self.terms, terms_BN.gather(1, top_BK)], dim=1),
            torch.cat([self.rows, rows_BN.gather(1, top_BK)], dim=1),
            self.aliases,
        )._sorted()
        if self.aliases:
            same_BKK = best.terms[:, :, None] == best.terms[:, None, :]
            best.scores.masked_fill_(same_BKK.tril(diagonal=-1).any(dim=2), -torch.inf)
        return best._sorted(keep)

    def _sorted(self, keep: int | None = None) -> BestTerms:
        """Stable, so that equal scores stay in the order of the index."""
        order_BK = self.scores.argsort(dim=1, descending=True, stable=True)[:, :keep]
        return BestTerms(
            self.scores.gather(1, order_BK),
            self.terms.gather(1, order_BK),
            self.rows.gather(1, order_BK),
            self.aliases,
        )
