"""The random state of a process and its device, taken and put back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass
class RandomState:
    """Every generator that a forward pass may draw from: torch's on the CPU and on the device, NumPy's, Python's."""

    cpu: torch.Tensor
    device: torch.device
    on_device: torch.Tensor | None
    numpy: dict[str, Any]
    python: tuple[Any, ...]

    @classmethod
    def take(cls, device: torch.device) -> RandomState:
        on_device = torch.get_device_module(device).get_rng_state(device) if device.type != "cpu" else None
        return cls(torch.get_rng_state(), device, on_device, np.random.get_state(legacy=False), random.getstate())

    def put(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.on_device is not None:
            torch.get_device_module(self.device).set_rng_state(self.on_device, self.device)
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw what was drawn after the state was taken; afterwards, go on where we were."""
        now = RandomState.take(self.device)
        self.put()
        try:
            yield
        finally:
            now.put()
