"""Section `loader` of `benchmarks.data`: a `torch.utils.data.DataLoader` over the clips, feeding a model of no cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmarks.data.clips import BenchmarkClips
from benchmarks.data.measure import shuffled_batches
from benchmarks.data.rows import SHUFFLE_SEED
from qwen_term_retrieval.audio.collate import PcmBuffers
from qwen_term_retrieval.packs.clip_reader import ClipReader

NUM_WORKERS = (0, 1, 2)


class Batches(Dataset):
    """Row numbers in, a padded int16 batch out."""

    def __init__(self, reader: ClipReader) -> None:
        self.reader = reader
        self.buffers = PcmBuffers()

    def __len__(self) -> int:
        return len(self.reader)

    def __getitems__(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.reader.gather(indices, buffers=self.buffers)


class ShuffledBatches:
    """A batch sampler: another order each time it is iterated."""

    def __init__(self, num_clips: int) -> None:
        self.num_clips = num_clips
        self.epoch = 0

    def __iter__(self):
        self.epoch += 1
        return (batch.tolist() for batch in shuffled_batches(self.num_clips, self.epoch))

    def __len__(self) -> int:
        return len(list(shuffled_batches(self.num_clips, 0)))


def as_it_is(batch: Any) -> Any:
    return batch


def no_op(pcm_BS: torch.Tensor) -> int:
    return len(pcm_BS)


def make_loader(reader: ClipReader, num_workers: int) -> DataLoader:
    return DataLoader(
        Batches(reader),
        batch_sampler=ShuffledBatches(len(reader)),
        collate_fn=as_it_is,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def run(clips: BenchmarkClips, *, repetitions: int) -> dict[str, Any]:
    """Clips a second by number of workers; every pass is over all clips, the first one is not counted."""
    reader = ClipReader(clips.dataset().shuffle(seed=SHUFFLE_SEED))
    loaders = {workers: make_loader(reader, workers) for workers in NUM_WORKERS}
    seconds: dict[int, list[float]] = {workers: [] for workers in NUM_WORKERS}
    with tqdm(total=len(loaders) * (repetitions + 1), desc="loader", unit=" passes", disable=None) as progress:
        for _ in range(repetitions + 1):
            for workers, loader in loaders.items():
                started = time.perf_counter()
                delivered = sum(no_op(pcm_BS) for pcm_BS, _ in loader)
                seconds[workers].append(time.perf_counter() - started)
                if delivered != len(reader):
                    raise RuntimeError(f"{workers} workers delivered {delivered} of {len(reader)} clips")
                progress.update()
    return {
        "clips_per_second": {
            str(workers): len(reader) / statistics.median(times[1:]) for workers, times in seconds.items()
        },
        "seconds": {str(workers): times[1:] for workers, times in seconds.items()},
    }
