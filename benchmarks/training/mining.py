"""Part `mining`: the nearest wrong terms of 100,000 clips among 100,000, beside a plain `torch.topk` loop.

Unit vectors: random terms, and one query a clip, midway between its term and a random direction; two threads of a CPU.
Both search exactly, a block of queries at a time. Ours also leaves out what was said in the clip and what scores too
near to it; the plain loop is given no rules, and would hand out the clip's own term. That ours finds what the loop
finds without it is checked on the first clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.training.measure import (
    Row,
    device_name,
    largest_difference,
    synchronize,
    take_turns,
    top_operators,
    verdict,
)
from qwen_term_retrieval.models.flops import peak_flops
from qwen_term_retrieval.training.negatives.nearest import NO_TERM, nearest_wrong_terms

BELOW_SECONDS = 300.0
CPU_THREADS = 2
TOLERANCE = 1e-5
CHECKED_CLIPS = 1024
# Of clips with one query, a run searches as many together.
AT_ONCE = 512
OURS, PEER = "ours", "plain topk loop"


@dataclass
class Bank:
    """Clips, each a noisy copy of one term, and the terms: unit vectors."""

    query_CD: torch.Tensor
    term_ND: torch.Tensor
    own_C: torch.Tensor

    @classmethod
    def draw(cls, num_clips: int, num_terms: int, dim: int, device: torch.device) -> Bank:
        generator = torch.Generator().manual_seed(0)
        term_ND = F.normalize(torch.randn(num_terms, dim, generator=generator), dim=1)
        own_C = torch.randint(num_terms, (num_clips,), generator=generator)
        noise_CD = F.normalize(torch.randn(num_clips, dim, generator=generator), dim=1)
        query_CD = F.normalize(term_ND[own_C] + noise_CD, dim=1)
        return cls(query_CD.to(device), term_ND.to(device), own_C)

    def first_clips(self, number: int) -> Bank:
        return Bank(self.query_CD[:number], self.term_ND, self.own_C[:number])

    def mine(self, k: int) -> torch.Tensor:
        """int32 (C, K), by `nearest_wrong_terms`, as many clips at a time as a run searches."""
        said = [[term] for term in self.own_C.tolist()]
        positive_C = (self.query_CD * self.term_ND[self.own_C.to(self.term_ND.device)]).sum(dim=1)
        tables = [
            nearest_wrong_terms(
                self.query_CD[first : first + AT_ONCE],
                range(len(said[first : first + AT_ONCE])),
                positive_C[first : first + AT_ONCE],
                self.term_ND,
                said[first : first + AT_ONCE],
                k,
            )
            for first in range(0, len(said), AT_ONCE)
        ]
        return torch.from_numpy(np.concatenate(tables))

    def plain_topk(self, k: int) -> torch.Tensor:
        """int64 (C, K), what is nearest, right or wrong."""
        blocks = self.query_CD.split(AT_ONCE)
        return torch.cat([torch.topk(block_QD @ self.term_ND.T, k, dim=1).indices for block_QD in blocks])

    def scores(self, term_CK: torch.Tensor) -> torch.Tensor:
        device = self.term_ND.device
        return torch.einsum("cd,ckd->ck", self.query_CD, self.term_ND[term_CK.to(device, torch.int64)])


def run(
    device: torch.device, *, num_clips: int = 100_000, num_terms: int = 100_000, dim: int = 256, k: int = 10
) -> dict[str, Any]:
    """Seconds of one mining; each row runs once."""
    with cpu_threads(CPU_THREADS), torch.inference_mode():
        bank = Bank.draw(num_clips, num_terms, dim, device)
        sample = bank.first_clips(CHECKED_CLIPS)
        difference = scores_difference(sample, k)
        flops = 2 * num_clips * num_terms * dim
        rows = {
            OURS: Row("`nearest_wrong_terms`", flops=flops),
            PEER: Row("`torch.topk(Q @ N.T)` in blocks, no rules", beside=OURS, flops=flops),
        }
        take_turns(rows, {OURS: lambda: bank.mine(k), PEER: lambda: bank.plain_topk(k)}, 1, device, warm_up=False)
        peak = peak_flops(device, torch.float32)
        found = {
            "rows": {name: row.to_json(rows, peak) for name, row in rows.items()},
            "peak_flops_per_second": peak,
            "dtype": "float32",
            "device": device_name(device),
            **verdict(rows[OURS].median, below=BELOW_SECONDS),
            "judged": f"seconds of {OURS}",
            "clips": num_clips,
            "terms": num_terms,
            "dim": dim,
            "negatives_a_clip": k,
            "largest_difference_of_scores": difference,
        }
        return found if found["met"] else found | {"profile": top_operators(lambda: sample.mine(k), device)}


def scores_difference(bank: Bank, k: int) -> float:
    """Between the scores of what ours finds and of what the loop finds beside the clips' own terms.

    Raises:
        OutputsDifferError: ours finds other terms, or too few.
    """
    nearest_CK = bank.plain_topk(k + 1)
    own_C1 = bank.own_C[:, None].to(nearest_CK.device)
    # The own term last, then cut off: where it is not among the nearest, the farthest of them is.
    order_CK = (nearest_CK == own_C1).to(torch.uint8).argsort(dim=1, stable=True)
    expected_CK = nearest_CK.gather(1, order_CK)[:, :k]
    found_CK = bank.mine(k)
    score_CK = bank.scores(found_CK).masked_fill((found_CK == NO_TERM).to(bank.term_ND.device), -torch.inf)
    synchronize(bank.term_ND.device)
    return largest_difference(score_CK, bank.scores(expected_CK), TOLERANCE, "scores of mined terms")


@contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
