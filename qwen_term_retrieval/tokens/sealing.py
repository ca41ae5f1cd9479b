"""Finished parts into shards: the parts end to end, cut every so many tokens."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.storage.staging import copy_part
from qwen_term_retrieval.tokens.parts import TokenPartResult, ids_path, read_lengths
from qwen_term_retrieval.tokens.token_pack import HEADER_BYTES, TokenShardHeader, token_shard_name


def sealing_folder(staging: Path, results: Sequence[TokenPartResult], shard_tokens: int) -> Path:
    """A folder for these very parts and this size of shards: what is in it was sealed from them, and is kept."""
    plan = xxhash.xxh3_128_hexdigest(repr(([result.signature for result in results], shard_tokens)).encode())
    folder = staging / f"tokens-{plan}"
    for other in staging.glob("tokens-*"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(exist_ok=True)
    return folder


def seal_token_shards(
    parts: Path, results: Sequence[TokenPartResult], folder: Path, shard_tokens: int, dtype: str, *, quiet: bool
) -> list[TokenShardHeader]:
    """Write `tokens_N.bin` into `folder`, dropping each part's ids once its shards are sealed.

    Shards that an interrupted run sealed are kept.

    Raises:
        PackError: where a part is gone that a shard not yet sealed needs: corpus or settings changed in between.
    """
    part_ends = np.cumsum([result.num_tokens for result in results])
    total = int(part_ends[-1])
    headers = []
    num_dropped = 0
    with Progress(desc="sealing", total=total, unit=" tokens", unit_scale=True, shown=not quiet) as progress:
        for number, start in enumerate(range(0, total, shard_tokens)):
            stop = min(start + shard_tokens, total)
            path = folder / token_shard_name(number)
            # A shard takes its name when it is whole, so one that is there is whole.
            header = (
                TokenShardHeader.read(path)
                if path.is_file()
                else _write_shard(path, parts, part_ends, start, stop, dtype)
            )
            headers.append(header)
            num_sealed = int(np.searchsorted(part_ends, stop, side="right"))
            for part in range(num_dropped, num_sealed):
                ids_path(parts, part).unlink(missing_ok=True)
            num_dropped = num_sealed
            progress.update(stop - start)
    return headers


def _write_shard(path: Path, parts: Path, part_ends: np.ndarray, start: int, stop: int, dtype: str) -> TokenShardHeader:
    """Tokens `start` to `stop` of all parts laid end to end."""
    digest = xxhash.xxh64()
    itemsize = np.dtype(dtype).itemsize
    first = int(np.searchsorted(part_ends, start, side="right"))
    with atomic_file(path) as file:
        file.write(bytes(HEADER_BYTES))
        part_start = int(part_ends[first - 1]) if first else 0
        for part in range(first, len(part_ends)):
            part_end = int(part_ends[part])
            begin, end = max(start, part_start), min(stop, part_end)
            if begin < end:
                num_bytes = (end - begin) * itemsize
                copy_part(ids_path(parts, part), (begin - part_start) * itemsize, num_bytes, file, digest)
            if part_end >= stop:
                break
            part_start = part_end
        header = TokenShardHeader(dtype, stop - start, digest.intdigest())
        file.seek(0)
        file.write(header.to_bytes())
    return header


def write_documents(parts: Path, num_parts: int, path: Path, num_texts: int) -> None:
    """Write `documents.npy`: int64 (num_texts + 1,), where each text starts in the stream, and the stream's end."""
    position = 0
    with atomic_file(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (num_texts + 1,)})
        file.write(np.zeros(1, "<i8").data)
        for part in range(num_parts):
            ends = position + np.cumsum(read_lengths(parts, part))
            if len(ends):
                file.write(ends.astype("<i8").data)
                position = int(ends[-1])
