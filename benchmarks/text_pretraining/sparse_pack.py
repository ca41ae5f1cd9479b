"""A pack of any number of pairs that takes hardly any room on disk: its ids are a hole in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qwen_term_retrieval.storage.checksums import file_xxh64
from qwen_term_retrieval.tokens.token_pack import HEADER_BYTES, TokenShardHeader, write_tokens_json


def make_sparse_pack(folder: Path, num_pairs: int, seed: int = 0) -> Path:
    """Pairs of 4 to 60 tokens a side; their bounds are written, 16 bytes a pair, and their ids are zeros."""
    folder.mkdir(parents=True)
    bounds = np.lib.format.open_memmap(folder / "documents.npy", "w+", np.int64, (2 * num_pairs + 1,))
    lot, end = np.random.default_rng(seed), 0
    for start in range(1, len(bounds), 1 << 20):
        stop = min(start + (1 << 20), len(bounds))
        bounds[start:stop] = end + np.cumsum(lot.integers(4, 60, stop - start))
        end = int(bounds[stop - 1])
    bounds.flush()
    shard = folder / "tokens_00000.bin"
    with shard.open("wb") as file:
        file.truncate(HEADER_BYTES + 2 * end)
        file.write(TokenShardHeader("uint16", end, 0).to_bytes())
    (folder / "tokenizer.json").write_text("{}")
    small = {"bytes": 2, "xxh64": file_xxh64(folder / "tokenizer.json")}
    made_by = {"name": "", "sha256": "", "vocabulary_size": 9, "eos": "</s>", "separator": "</s>", "pad_id": 0}
    content = {
        "dtype": "uint16", "num_tokens": end, "num_documents": num_pairs, "num_empty": 0,
        "columns": ["prompt", "response"], "tokenizer": made_by, "shard_tokens": end,
        "shards": [{"file": shard.name, "tokens": end, "bytes": shard.stat().st_size, "xxh64": f"{0:016x}"}],
        "files": {"tokenizer.json": small}, "made": {},
    }  # fmt: skip
    write_tokens_json(folder, content)
    return folder
