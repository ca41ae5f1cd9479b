"""Peak memory of each step over pairs, of few and of ten times as many, each in a process of its own.

    python -m benchmarks.text_pretraining.memory STEP FOLDER NUM_PAIRS

does one step and prints the process's peak in MB, and how much of what it has at the end are pages of mapped files,
which the kernel takes back when it needs them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from qwen_term_retrieval.trainer_callbacks.token_throughput import peak_rss_bytes

STEPS = ("convert", "convert json list", "split", "inspect", "train-tokenizer", "tokenize", "train")
_WORDS = [f"word{number % 37}" for number in range(24)]


def write_pairs(folder: Path, num_pairs: int) -> None:
    """About 120 bytes of JSON a pair, the length of WordNet's: what could grow does with their number."""
    for name, opening, between, closing in (("pairs.jsonl", "", "\n", "\n"), ("pairs.json", "[", ",\n", "]")):
        with (folder / name).open("w") as file:
            file.write(opening)
            for row in range(num_pairs):
                prompt, response = f"{row} {_WORDS[row % 24]}", " ".join((*_WORDS[: 4 + row % 16], str(row)))
                text = json.dumps({"prompt": prompt, "response": response})
                file.write((between if row else "") + text)
            file.write(closing)


def do_step(step: str, folder: Path) -> None:
    from qwen_term_retrieval.pretraining.text.preparation.converting import convert_pairs
    from qwen_term_retrieval.pretraining.text.preparation.inspecting import inspect_pairs
    from qwen_term_retrieval.pretraining.text.preparation.splitting import split_pairs
    from qwen_term_retrieval.pretraining.text.preparation.vocabulary import train_tokenizer
    from qwen_term_retrieval.tokens.mmap_pairs import pack_pairs

    pairs, train = folder / "pairs.parquet", folder / "splits" / "train.parquet"
    quiet: dict[str, Any] = {"quiet": True, "overwrite": True}
    run: dict[str, Callable[[], object]] = {
        "convert": lambda: convert_pairs(folder / "pairs.jsonl", pairs, **quiet),
        "convert json list": lambda: convert_pairs(folder / "pairs.json", pairs, **quiet),
        "split": lambda: split_pairs(pairs, folder / "splits", **quiet),
        "inspect": lambda: inspect_pairs(pairs, quiet=True),
        "train-tokenizer": lambda: train_tokenizer(train, folder / "tokenizer", vocab_size=2000, **quiet),
        "tokenize": lambda: pack_pairs(train, folder / "tokens", folder / "tokenizer", num_workers=1, **quiet),
        "train": lambda: _train(folder),
    }
    run[step]()


def _train(folder: Path) -> None:
    """Two hundred steps of a tiny model: what grows with the pairs would show."""
    from transformers import AutoTokenizer

    from qwen_term_retrieval.pretraining.text.architectures import build_model
    from qwen_term_retrieval.pretraining.text.arguments import TextModelArguments, TextPretrainingArguments
    from qwen_term_retrieval.pretraining.text.trainer import TextPretrainingTrainer
    from qwen_term_retrieval.tokens.mmap_pairs import MmapPairs

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = build_model(TextModelArguments(hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2), tokenizer)
    args = TextPretrainingArguments(
        output_dir=str(folder / "run"), use_cpu=True, max_steps=200, eval_strategy="no", save_strategy="no",
        max_seq_len=32, disable_tqdm=True, report_to="none", overwrite=True, check_memory=False,
    )  # fmt: skip
    TextPretrainingTrainer(model, args, MmapPairs(folder / "tokens", 32), tokenizer=tokenizer).train()


def measure_memory(work: Path, sizes: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {step: {} for step in STEPS}
    for num_pairs in sizes:
        folder = work / f"pairs-{num_pairs}"
        folder.mkdir(parents=True, exist_ok=True)
        write_pairs(folder, num_pairs)
        for step in STEPS:
            started = time.perf_counter()
            command = [sys.executable, "-m", "benchmarks.text_pretraining.memory", step, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak, files = map(float, done.stdout.splitlines()[-1].split())
            seconds = time.perf_counter() - started
            found[step][f"{num_pairs}"] = {"peak_mb": peak, "of_it_files_mb": files, "seconds": seconds}
        found["convert json list"][f"{num_pairs}"]["file_mb"] = (folder / "pairs.json").stat().st_size / 1e6
    for step in STEPS:
        peaks = [found[step][f"{num_pairs}"]["peak_mb"] for num_pairs in sizes]
        files = [found[step][f"{num_pairs}"]["of_it_files_mb"] for num_pairs in sizes]
        growth = peaks[-1] - peaks[0]
        found[step] |= {"growth_mb": growth, "growth_but_files_mb": growth - files[-1] + files[0]}
    return found


if __name__ == "__main__":
    do_step(sys.argv[1], Path(sys.argv[2]))
    print(peak_rss_bytes() / 1e6, psutil.Process().memory_info().shared / 1e6)
