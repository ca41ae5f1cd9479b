"""The loaders of litdata and MosaicML streaming over the same pairs, padded by numpy as plainly as can be.

    python -m benchmarks.text_pretraining.peers NAME IDS FOLDER NUM_BATCHES

prints the real tokens a second of some batches. Runs in an environment that has the peers (`pip install litdata
mosaicml-streaming`). IDS is an .npz of `ids` and of `bounds`, where each prompt and each response begins. A sample is
one string of bytes, the prompt's length and the ids of both sides; the library itself shuffles.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch

BATCH = 32
CHUNK_BYTES = 1 << 26
Sample = bytes


def litdata_samples(samples: Iterable[Sample], folder: Path) -> Iterator[Sample]:
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    if not folder.is_dir():
        writer = BinaryWriter(str(folder), chunk_bytes=CHUNK_BYTES)
        for number, sample in enumerate(samples):
            writer[number] = sample
        writer.done()
        writer.merge()
    return iter(StreamingDataset(str(folder), shuffle=True))


def mds_samples(samples: Iterable[Sample], folder: Path) -> Iterator[Sample]:
    from benchmarks.data.peers import mosaic_streaming

    streaming = mosaic_streaming()
    if not folder.is_dir():
        with streaming.MDSWriter(out=str(folder), columns={"pair": "bytes"}, size_limit=CHUNK_BYTES) as writer:
            for sample in samples:
                writer.write({"pair": sample})
    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    return (row["pair"] for row in dataset)


PEERS: dict[str, Callable[[Iterable[Sample], Path], Iterator[Sample]]] = {
    "litdata": litdata_samples,
    "Mosaic MDS": mds_samples,
}


def padded(texts: list[np.ndarray], pad: int) -> torch.Tensor:
    rows = np.full((len(texts), max(map(len, texts))), pad, np.int64)
    for row, ids in zip(rows, texts, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(rows)


def main(name: str, ids_file: str, folder: str, num_batches: str) -> None:
    with np.load(ids_file) as arrays:
        ids, bounds = arrays["ids"], arrays["bounds"]
    texts = [ids[start:stop] for start, stop in pairwise(bounds)]
    pairs = (
        np.concatenate([[len(prompt)], prompt, response]) for prompt, response in zip(*[iter(texts)] * 2, strict=True)
    )
    samples = PEERS[name]((pair.astype(np.uint16).tobytes() for pair in pairs), Path(folder))
    started, tokens = 0.0, 0
    for number in range(int(num_batches) + 1):
        rows = list(islice(samples, BATCH))
        if not rows:
            break
        arrays = [np.frombuffer(row, np.uint16) for row in rows]
        prompts = padded([ids[1 : 1 + ids[0]] for ids in arrays], 0)
        responses = padded([ids[1 + ids[0] :] for ids in arrays], -100)
        mask = prompts != 0
        if number:
            tokens += int(mask.sum() + (responses != -100).sum())
        else:  # the first batch opens what there is to open
            started = time.perf_counter()
    print(tokens / (time.perf_counter() - started))


if __name__ == "__main__":
    main(*sys.argv[1:])
