"""Token shards: packing against a bare tokenizer loop, reading against nanoGPT's loop, from one run.

    python -m benchmarks.tokens

Packing: the same text through the same tokenizer on two processes. The peers read JSON Lines, call the tokenizer on
batches, through `transformers` or by `tokenizers` itself, and append the ids to a file, with neither order, checks,
checksums nor a way to go on after a kill. Rounds take turns, and the medians are compared.

Reading: batches of random windows out of a warm file. The peer is `get_batch` of nanoGPT: for each sample two slices of
np.memmap to int64, `torch.from_numpy`, then two `torch.stack`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader
from transformers import AutoTokenizer

from benchmarks.results_json import RESULTS, write_results
from qwen_term_retrieval.models.weights.checkpoints import resolve_checkpoint
from qwen_term_retrieval.text.wordlists import wordnet_examples
from qwen_term_retrieval.tokens.mmap_tokens import MmapTokens
from qwen_term_retrieval.tokens.packing import pack_tokens
from qwen_term_retrieval.tokens.tokenizer import untruncated

TOKENIZER = "sentence-transformers/all-MiniLM-L6-v2"
NUM_WORKERS = 2
SENTENCES_PER_DOCUMENT = 20
BATCH = 64
LENGTH = 1024


def write_corpus(path: Path, copies: int) -> None:
    """WordNet's example sentences, twenty a document."""
    sentences = wordnet_examples()
    starts = range(0, len(sentences), SENTENCES_PER_DOCUMENT)
    lines = [json.dumps({"text": " ".join(sentences[i : i + SENTENCES_PER_DOCUMENT])}) + "\n" for i in starts]
    path.write_text("".join(lines) * copies, encoding="utf-8")


def bare_loop(peer: str, source: Path, out: Path, tokenizer: Path, part: int) -> int:
    """Tokenize every `NUM_WORKERS`th line into a file, by `transformers` or by `tokenizers` itself."""
    wrapper = AutoTokenizer.from_pretrained(tokenizer)
    backend = untruncated(wrapper.backend_tokenizer)
    num_tokens = 0
    with source.open(encoding="utf-8") as lines, out.open("wb") as file:
        own = islice(lines, part, None, NUM_WORKERS)
        while texts := [json.loads(line)["text"] for line in islice(own, 256)]:
            if peer == "transformers":
                rows = wrapper(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
            else:
                rows = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
            for ids in rows:
                file.write(np.array([*ids, wrapper.sep_token_id], np.uint16).tobytes())
                num_tokens += len(ids) + 1
    return num_tokens


def bare_loop_on_processes(peer: str, source: Path, folder: Path, tokenizer: Path) -> int:
    with ProcessPoolExecutor(NUM_WORKERS) as pool:
        jobs = [
            pool.submit(bare_loop, peer, source, folder / f"bare{part}.bin", tokenizer, part)
            for part in range(NUM_WORKERS)
        ]
        return sum(job.result() for job in jobs)


def packing(folder: Path, copies: int, rounds: int) -> tuple[int, dict[str, float]]:
    source, tokenizer = folder / "text.jsonl", resolve_checkpoint(TOKENIZER, ())
    write_corpus(source, copies)

    def packed() -> int:
        settings = {"num_workers": NUM_WORKERS, "overwrite": True, "quiet": True}
        return pack_tokens(source, folder / "tokens", tokenizer, **settings).num_tokens

    ways = {
        "transformers": partial(bare_loop_on_processes, "transformers", source, folder, tokenizer),
        "tokenizers": partial(bare_loop_on_processes, "tokenizers", source, folder, tokenizer),
        "pack_tokens": packed,
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    counts = set()
    for _ in range(rounds):
        for way, run in ways.items():
            started = time.perf_counter()
            num_tokens = run()
            rates[way].append(num_tokens / (time.perf_counter() - started))
            counts.add(num_tokens)
    if len(counts) > 1:
        raise RuntimeError(f"the ways made different numbers of tokens: {sorted(counts)}")
    return counts.pop(), {way: statistics.median(measured) for way, measured in rates.items()}


def reading(folder: Path, num_tokens: int, rounds: int) -> dict[str, float]:
    path = folder / "ids.bin"
    np.random.default_rng(0).integers(0, 50_000, num_tokens, dtype=np.uint16).tofile(path)
    tokens = MmapTokens(path, LENGTH, stride=1, dtype="uint16")
    order = iter(tokens.sampler(seed=0))
    data = np.memmap(path, np.uint16, "r")
    out = tokens.batch(range(BATCH))

    def offsets() -> list[int]:
        return list(islice(order, BATCH))

    def nanogpt(starts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.stack([torch.from_numpy(data[i : i + LENGTH].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + LENGTH].astype(np.int64)) for i in starts])
        return x, y

    ways: dict[str, Callable[[list[int]], object]] = {
        "np.memmap + torch.from_numpy (nanoGPT)": nanogpt,
        "MmapTokens[indices]": tokens.__getitem__,
        "MmapTokens.batch(indices, out)": lambda starts: tokens.batch(starts, out),
        "list of MmapTokens[index]": lambda starts: [tokens[i] for i in starts],
    }
    starts = offsets()
    for mine, theirs in zip(tokens[starts], nanogpt(starts), strict=True):
        if not torch.equal(mine, theirs):
            raise RuntimeError("the two ways read different windows")
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, read in ways.items():
            batches = [offsets() for _ in range(50)]
            started = time.perf_counter()
            for batch in batches:
                read(batch)
            rates[name].append(BATCH * len(batches) / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    batches = BatchSampler(tokens.sampler(seed=1), BATCH, drop_last=True)
    loaded = iter(DataLoader(tokens, batch_size=None, sampler=batches, num_workers=NUM_WORKERS))
    next(loaded)
    started = time.perf_counter()
    for _ in islice(loaded, 1000):
        pass
    medians[f"DataLoader, {NUM_WORKERS} workers"] = 1000 * BATCH / (time.perf_counter() - started)
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=16, help="of the 1.6 MB of text")
    parser.add_argument("--tokens", type=int, default=200_000_000, help="in the file that is read")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "tokens.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        num_tokens, packed = packing(Path(scratch), arguments.copies, arguments.rounds)
        read = reading(Path(scratch), arguments.tokens, arguments.rounds)
    print(f"packing {num_tokens} tokens on {NUM_WORKERS} processes, tokens/s (× of the faster loop)")
    loop = max(packed["transformers"], packed["tokenizers"])
    for name, rate in packed.items():
        print(f"  {name:<42} {rate:>12,.0f}  {rate / loop:>6.2f}×")
    print(f"reading batches of {BATCH} windows of {LENGTH}, warm, windows/s (× of the first)")
    peer = next(iter(read.values()))
    for name, rate in read.items():
        print(f"  {name:<42} {rate:>12,.0f}  {rate / peer:>6.2f}×")
    write_results(
        arguments.out,
        {"packing_tokens_per_s": packed, "reading_windows_per_s": read, "batch": BATCH, "length": LENGTH},
        packages=["tokenizers", "torch", "numpy"],
    )


if __name__ == "__main__":
    main()
