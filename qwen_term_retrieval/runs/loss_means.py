"""The parts of a loss between two log lines, as means over steps and ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist

from qwen_term_retrieval.distributed import world_size


class LossMeans:
    """Sums parts of losses where they lie, without waiting for the device, until a log line asks for their means."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor | float] = {}
        self._count: torch.Tensor | float = 0.0

    def add(self, parts: Mapping[str, torch.Tensor], finite: torch.Tensor) -> None:
        """Count the parts of one micro-batch; where its loss is not `finite`, they are left out."""
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + torch.where(finite, part.detach(), 0.0)
        self._count = self._count + finite

    def take(self, device: torch.device) -> dict[str, float]:
        """The means over all ranks, and begin anew; nothing where no loss was finite. Every rank calls it."""
        totals = [*self._sums.values(), self._count]
        sums = torch.stack([torch.as_tensor(total, dtype=torch.float32) for total in totals]).to(device)
        if world_size() > 1:
            dist.all_reduce(sums)
        means = dict(zip(self._sums, (sums[:-1] / sums[-1]).tolist(), strict=True)) if sums[-1] > 0 else {}
        self._sums, self._count = {}, 0.0
        return means
