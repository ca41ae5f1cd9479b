"""The batches of a run: epochs that follow one another without a pause.

With `persistent_workers`, torch (2.13) keeps the worker processes over the end of an epoch, but builds nothing beyond
it: each epoch begins by waiting for its first batches. Where epochs are short, that is most of the waiting there is.
`EpochLoader` lets its workers run on, so that the first batches of an epoch are built while the last steps of the one
before, its evaluation and its checkpoint are under way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments

from qwen_term_retrieval.runs.sampling import GlobalBatchSampler, Visit


class EpochLoader(DataLoader):
    """A DataLoader of one epoch at a time whose persistent workers go on into the next.

    An epoch that does not follow on what was read so far starts anew: after a resume, or when one was left in the
    middle. The sampler gives each rank its share, so there is nothing for accelerate to shard. A batch is built at most
    `num_workers * prefetch_factor` batches before its turn. Without persistent workers this is torch's loader.

    Args:
        dataset: of clips, by `Visit`.
        batch_sampler: of this rank.
        settings: the other settings of `DataLoader`.
    """

    def __init__(self, dataset: Dataset, batch_sampler: GlobalBatchSampler, **settings: Any):
        # Starting workers draws a seed. No batch depends on it, but dropout would, and would differ after a resume.
        settings["generator"] = torch.Generator()
        super().__init__(dataset, batch_sampler=batch_sampler, **settings)
        self._sampler = batch_sampler
        self._settings = settings | {"persistent_workers": False}
        self._stream: Any = None
        self._position = 0  # in batches from the start of the run

    @classmethod
    def of_run(
        cls, dataset: Dataset, batch_sampler: GlobalBatchSampler, collate: Callable[..., Any], args: TrainingArguments
    ) -> EpochLoader:
        """The loader that the `dataloader_…` settings of a run ask for."""
        return cls(
            dataset,
            batch_sampler,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            in_order=args.dataloader_in_order,
        )

    def set_epoch(self, epoch: int) -> None:
        """The Trainer calls this before each epoch."""
        self._sampler.set_epoch(epoch)

    def __iter__(self) -> Any:
        if not self.persistent_workers:
            return super().__iter__()
        first = self._sampler.epoch * len(self)
        if self._stream is None or self._position != first:
            self.close()
            run = DataLoader(self.dataset, batch_sampler=_from_now_on(self._sampler), **self._settings)
            self._stream, self._position = iter(run), first
        return self._epoch()

    def _epoch(self) -> Iterator[Any]:
        for _ in range(len(self)):
            # First, so that an error in the epoch's first batch leaves it in the middle.
            self._position += 1
            yield next(self._stream)

    def close(self) -> None:
        """End the workers; the next epoch starts others."""
        if self._stream is not None:
            # Dropping it is not enough: the traceback of an error in a worker refers to it.
            self._stream._shutdown_workers()
            self._stream = None


def _from_now_on(sampler: GlobalBatchSampler) -> Iterator[list[Visit]]:
    """The batches of the current epoch, of the next, and so on without an end."""
    ahead = copy.copy(sampler)  # of its own epoch: that of `sampler` is set while this one is ahead
    for epoch in count(sampler.epoch):
        ahead.set_epoch(epoch)
        yield from ahead
