"""Real tokens a second out of a loader, and how much of what it gives is padding, beside `datasets`.

All read the same pairs, tokenized before. The peer is what the examples of transformers do: a shuffled
`DataLoader` over a memory-mapped `datasets.Dataset` of ids, padded by `DataCollatorForSeq2Seq`.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorForSeq2Seq

from qwen_term_retrieval.pretraining.text.batches import PairBatches, SideBySide
from qwen_term_retrieval.pretraining.text.order import MicroBatch, PairOrder, PairSampler
from qwen_term_retrieval.pretraining.text.run import open_prepared
from qwen_term_retrieval.tokens.mmap_pairs import MmapPairs

BATCH, LENGTH = 32, 192
RANKS = 3


def tokenized_dataset(pairs: MmapPairs, folder: Path) -> datasets.Dataset:
    """The same pairs as a dataset of ids, on disk."""
    if not folder.is_dir():

        def rows() -> Iterator[dict[str, list[int]]]:
            for start in range(0, len(pairs), 4096):
                batch = pairs.batch(range(start, min(start + 4096, len(pairs))))
                for row in range(len(batch.prompt_BS)):
                    yield {
                        "input_ids": batch.prompt_BS[row, : batch.prompt_lengths_B[row]].tolist(),
                        "labels": batch.response_BT[row, : batch.response_lengths_B[row]].tolist(),
                    }

        datasets.Dataset.from_generator(rows, cache_dir=str(folder.with_name("hf-cache"))).save_to_disk(folder)
    return datasets.load_from_disk(folder)


def loaders(prepared: Path, work: Path) -> dict[str, Callable[[], Iterable[dict[str, torch.Tensor]]]]:
    pairs, _, tokenizer = open_prepared(prepared, LENGTH)
    dataset = tokenized_dataset(pairs, work / "hf-tokenized")
    pad_id = int(tokenizer.pad_token_id)
    collate = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(prepared / "tokenizer"))

    def ours() -> DataLoader:
        order = PairOrder(pairs, BATCH, seed=0)
        batches = PairBatches(pairs, order, SideBySide(pad_id, pad_id))
        return DataLoader(batches, batch_sampler=PairSampler(order), collate_fn=lambda rows: rows[0])

    def peer() -> DataLoader:
        return DataLoader(dataset, batch_size=BATCH, shuffle=True, collate_fn=collate)

    return {"datasets + DataCollatorForSeq2Seq": peer, "PairBatches": ours}


def measure_peers(prepared: Path, work: Path, python: Path, num_batches: int, rounds: int) -> dict[str, Any]:
    """litdata and MosaicML streaming, in the environment of another `python`; see `peers.py`."""
    pairs, _, _ = open_prepared(prepared, LENGTH)
    ids_file = work / "ids.npz"
    if not ids_file.is_file():
        batch = pairs.batch(range(len(pairs)))
        length_N2 = np.stack([batch.prompt_lengths_B, batch.response_lengths_B], axis=1)
        rows = zip(batch.prompt_BS, batch.response_BT, length_N2.tolist(), strict=True)
        parts = [ids for prompt, response, (s, t) in rows for ids in (prompt[:s], response[:t])]
        bounds = np.concatenate([[0], np.cumsum(length_N2.ravel())])
        np.savez(ids_file, ids=np.concatenate(parts).astype(np.uint16), bounds=bounds)
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, folder in (("litdata", "litdata"), ("Mosaic MDS", "mds")):
            module = ["-m", "benchmarks.text_pretraining.peers", name, str(ids_file), str(work / folder)]
            done = subprocess.run([str(python), *module, str(num_batches)], capture_output=True, text=True, check=True)
            rates.setdefault(name, []).append(float(done.stdout.splitlines()[-1]))
    return {"real_tokens_per_s": {name: statistics.median(each) for name, each in rates.items()}, "rounds": rates}


def real_tokens(batch: dict[str, torch.Tensor]) -> int:
    return int(batch["attention_mask"].sum() + (batch["labels"] != -100).sum())


def measure_loaders(prepared: Path, work: Path, num_batches: int, rounds: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, make in loaders(prepared, work).items():
            batches = iter(make())
            next(batches)
            started, tokens = time.perf_counter(), 0
            for batch in islice(batches, num_batches):
                tokens += real_tokens(batch)
            rates.setdefault(name, []).append(tokens / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    peer, own = medians.values()
    return {"real_tokens_per_s": medians, "ratio": own / peer, "rounds": rates}


def measure_padding(prepared: Path) -> dict[str, Any]:
    """Shares of padding of an epoch on three ranks of 32 pairs, each rank padded alone."""
    pairs, _, _ = open_prepared(prepared, LENGTH)
    lengths_N2 = np.stack(pairs.lengths(np.arange(len(pairs))), axis=1)
    orders = {
        "bucketed pools": PairOrder(pairs, BATCH * RANKS, seed=0),
        "random batches": PairOrder(pairs, BATCH * RANKS, seed=0, bucketed=False),
    }
    found: dict[str, Any] = {}
    for name, order in orders.items():
        epoch = np.concatenate([order.batch(MicroBatch(0, number)) for number in range(len(order))])
        length_RB2 = lengths_N2[epoch].reshape(-1, BATCH, 2)
        found[name] = 1 - length_RB2.sum() / (length_RB2.max(axis=1).sum() * BATCH)
    found[f"fixed {LENGTH} + {LENGTH}"] = 1 - lengths_N2.sum() / (2 * LENGTH * len(lengths_N2))
    return found
