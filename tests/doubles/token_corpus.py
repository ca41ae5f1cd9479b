"""Texts of made-up words, a tokenizer trained on them, and what packing them is checked with."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import tokenizers

from qwen_term_retrieval.tokens.mmap_tokens import MmapTokens

QUIET = {"num_workers": 1, "quiet": True}
SYLLABLES = [first + second for first in "bdfghklmnprst" for second in ("a", "e", "io", "u", "an", "el")]


def train_bpe(path: Path) -> Path:
    """Write the `tokenizer.json` of a small byte-level BPE."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<end>", "<sep>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(50), trainer)
    tokenizer.save(str(path))
    return path


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of a few words to a few thousand."""
    rng = random.Random(seed)
    return [
        " ".join("".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(int(rng.paretovariate(0.8)) + 2))
        for _ in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_texts(path: Path, documents: list[str]) -> Path:
    return write_jsonl(path, [{"text": text} for text in documents])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ids_of(tokens: MmapTokens) -> list[list[int]]:
    return [np.concatenate(list(tokens.document(i).values())).tolist() for i in range(tokens.num_documents)]
