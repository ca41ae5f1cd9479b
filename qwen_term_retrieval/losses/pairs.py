"""Which query and which candidate belong together, as lists of index pairs instead of a mask of all of them.

A clip holds a handful of terms, so the pairs of a batch grow with its size, where a mask would grow with its square.

Shapes: Q queries, M ids of a query, N candidates, P pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

NO_ID = -1


class Pairs(NamedTuple):
    """Distinct (query, candidate) pairs, sorted by query and then by candidate: int64 (P,) each."""

    query_P: torch.Tensor
    candidate_P: torch.Tensor

    def bounds(self, first_query: list[int]) -> list[int]:
        """Where in the list the pairs of each of these queries begin."""
        wanted = torch.tensor(first_query, device=self.query_P.device)
        return torch.searchsorted(self.query_P, wanted).tolist()


def positions_of(ids_QM: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
    """Position of each id among the distinct `ids_N`, -1 where it is not there or is padding: int64 (Q, M).

    Raises:
        ValueError: an id stands twice in `ids_N`. The second would be a negative of what was said.

    >>> positions_of(torch.tensor([[7, 5], [6, -1]]), torch.tensor([5, 7]))
    tensor([[ 1,  0],
            [-1, -1]])
    """
    if not len(ids_N):
        return torch.full_like(ids_QM, NO_ID)
    sorted_N, order_N = ids_N.sort()
    repeated_N = sorted_N[1:] == sorted_N[:-1]
    if bool(repeated_N.any()):
        identity = int(sorted_N[1:][repeated_N][0])
        raise ValueError(f"id {identity} stands twice among the candidates: gather them, or keep the first of each")
    nearest_QM = torch.searchsorted(sorted_N, ids_QM.contiguous()).clamp(max=len(ids_N) - 1)
    found_QM = (sorted_N[nearest_QM] == ids_QM) & (ids_QM != NO_ID)
    return order_N[nearest_QM].masked_fill(~found_QM, NO_ID)


def matching_pairs(ids_QM: torch.Tensor, ids_N: torch.Tensor) -> Pairs:
    """The pairs whose candidate is in the query's list of ids.

    Args:
        ids_QM: int64, padded with -1; an id may stand in a list more than once.
        ids_N: int64, distinct.
    """
    position_QM = positions_of(ids_QM, ids_N)
    query_P, column_P = (position_QM >= 0).nonzero(as_tuple=True)
    flat_P = torch.unique(query_P * max(1, len(ids_N)) + position_QM[query_P, column_P])
    return Pairs(flat_P // max(1, len(ids_N)), flat_P % max(1, len(ids_N)))
