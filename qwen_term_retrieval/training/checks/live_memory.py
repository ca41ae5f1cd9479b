"""Bytes of the tensors that a piece of code makes, counted as they come and go, on any device.

Every operation passes a dispatch mode, which notes the storages of its outputs and hears when they are freed: forward
and backward pass, autocast copies and recomputed layers included, views not counted twice. What a kernel needs inside
itself, and what an allocator rounds up to, is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Count the bytes of new tensors inside a `with` block.

    Attributes:
        now: bytes of those that are still alive.
        peak: the most that `now` has been.

    Example:
        >>> with LiveMemory() as live:
        ...     kept = torch.zeros(1000) + (torch.zeros(1000) + 1)
        >>> live.now, live.peak
        (4000, 12000)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {storage._cdata for storage in _storages((args, kwargs))}
        outputs = func(*args, **kwargs)
        for storage in _storages(outputs):
            if storage._cdata not in given and storage._cdata not in self._sizes:
                self._add(storage)
        return outputs

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._sizes[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _storages(values: Any) -> Iterable[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))
