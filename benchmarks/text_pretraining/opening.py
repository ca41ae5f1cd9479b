"""Seconds to open packs of millions of pairs, and to the first batch of a run that is resumed in mid-epoch."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.text_pretraining.sparse_pack import make_sparse_pack
from qwen_term_retrieval.pretraining.text.batches import PairBatches, SideBySide
from qwen_term_retrieval.pretraining.text.order import PairOrder, PairSampler
from qwen_term_retrieval.tokens.mmap_pairs import MmapPairs

GLOBAL_BATCH = 96
ROUNDS = 5


def measure_opening(work: Path, sizes: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for num_pairs in sizes:
        folder = work / f"sparse-{num_pairs}"
        if not folder.is_dir():
            make_sparse_pack(folder, num_pairs)
        opened, resumed = [], []
        for number in range(ROUNDS):
            started = time.perf_counter()
            pairs = MmapPairs(folder, 192)
            opened.append(time.perf_counter() - started)
            order = PairOrder(pairs, GLOBAL_BATCH, seed=number)
            batches = PairBatches(pairs, order, SideBySide(0, 0), rank=0, num_ranks=3)
            sampler = PairSampler(order)
            started = time.perf_counter()
            places = iter(sampler)
            for _ in range(len(sampler) // 2):  # as the Trainer passes over what was trained
                next(places)
            batch = batches[next(places)[0]]
            resumed.append(time.perf_counter() - started)
        found[f"{num_pairs}"] = {
            "open_s": statistics.median(opened),
            "first_batch_after_resume_s": statistics.median(resumed),
            "batches_passed_over": len(sampler) // 2,
            "mean_tokens": float(np.mean([values.numel() for values in batch.values()])),
        }
        shutil.rmtree(folder)
    return found
