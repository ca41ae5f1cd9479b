"""Campaign `flips` of `benchmarks.faults`: one bit of a pack is flipped, anywhere.

`verify` must find every one. Reading with `verify=True` must give the audio that was packed, or an error of ours: by
row, and by key.
"""

from __future__ import annotations

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from tqdm import tqdm

from benchmarks.data.clips import speech_clips, speech_corpus
from benchmarks.faults.inputs import encoded
from benchmarks.faults.isolation import DONE, Outcome, isolated
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.pack import Pack
from qwen_term_retrieval.packs.packing import pack_corpus

NUM_CLIPS = 48
SHARD_BYTES = 1 << 20
PARALLEL = 2
# Shards are nearly all of a pack: drawn by size alone, no other file would be hit.
SHARE_OF_KIND = {".dat": 0.4, ".npz": 0.15, ".parquet": 0.15, ".arrow": 0.15, ".json": 0.15}


def make_pack(folder: Path) -> tuple[Path, dict[str, str]]:
    """A pack of several shards, and the digest of each clip by key."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    digests = {}
    for number, pcm in enumerate(speech_clips(NUM_CLIPS, speech_corpus())):
        (corpus / f"{number:03d}.flac").write_bytes(encoded(pcm, "flac"))
        digests[f"{number:03d}"] = xxhash.xxh3_64_hexdigest(pcm.tobytes())
    pack_corpus(
        corpus, folder / "pack", sampling_rate=SAMPLING_RATE, shard_bytes=SHARD_BYTES, num_workers=1, quiet=True
    )
    return folder / "pack", digests


def draw_flips(pack: Path, count: int, seed: int) -> list[tuple[str, int]]:
    """`(file, number of the bit)` of each flip."""
    rng = np.random.default_rng(seed)
    kinds = list(SHARE_OF_KIND)
    flips = []
    for _ in range(count):
        kind = kinds[rng.choice(len(kinds), p=list(SHARE_OF_KIND.values()))]
        files = sorted(pack.glob(f"*{kind}"))
        file = files[int(rng.integers(0, len(files)))]
        flips.append((file.name, int(rng.integers(0, 8 * file.stat().st_size))))
    return flips


def try_flip(scratch: Path, pack: Path, digests: dict[str, str], file: str, bit: int) -> dict[str, Any]:
    """Flip a bit in a copy of the pack, verify it and read it."""
    copy = scratch / "pack"
    shutil.copytree(pack, copy)
    with (copy / file).open("r+b") as handle:
        handle.seek(bit // 8)
        (byte,) = handle.read(1)
        handle.seek(bit // 8)
        handle.write(bytes([byte ^ 1 << bit % 8]))
    return {
        "found": _is_found(copy),
        "by_row": _read_rows(copy, digests, scratch / "cache"),
        "by_key": _read_keys(copy, digests),
    }


def _is_found(pack: Path) -> bool:
    try:
        return bool(Pack.open(pack).verify())
    except PackError:
        return True


def _read_rows(pack: Path, digests: dict[str, str], cache: Path) -> dict[str, int]:
    from datasets import load_dataset

    counts = Counter(right=0, altered=0, refused=0)
    try:
        rows = load_dataset(str(pack), split="train", cache_dir=str(cache), verify=True)
    except PackError:
        return counts | {"refused": len(digests)}
    for row in rows:
        _count(counts, row["key"], row["audio"], digests)
    return counts


def _read_keys(pack: Path, digests: dict[str, str]) -> dict[str, int]:
    counts = Counter(right=0, altered=0, refused=0)
    try:
        opened = Pack.open(pack, verify=True)
    except PackError:
        return counts | {"refused": len(digests)}
    for key in digests:
        try:
            clip = opened.find(key).clip
        except PackError:
            counts["refused"] += 1
            continue
        _count(counts, key, clip, digests)
    return counts


def _count(counts: Counter[str], key: str, clip: Any, digests: dict[str, str]) -> None:
    try:
        digest = xxhash.xxh3_64_hexdigest(clip.pcm.tobytes())
    except PackError:
        counts["refused"] += 1
        return
    counts["right" if digest == digests.get(key) else "altered"] += 1


def run(work: Path, *, num_flips: int, seed: int = 0) -> dict[str, Any]:
    """Counts by kind of file: flips, those that `verify` missed, those that altered audio or failed otherwise."""
    shutil.rmtree(work, ignore_errors=True)
    pack, digests = make_pack(work)
    flips = draw_flips(pack, num_flips, seed)
    with ThreadPoolExecutor(PARALLEL) as pool:
        outcomes = list(
            tqdm(
                pool.map(lambda flip: isolated(partial(try_flip), pack, digests, *flip), flips),
                total=len(flips),
                desc="flipped bits",
                disable=None,
            )
        )
    by_kind: dict[str, Counter[str]] = {}
    failures = []
    for (file, bit), outcome in zip(flips, outcomes, strict=True):
        counts = by_kind.setdefault(Path(file).suffix, Counter())
        problems = problems_of(outcome)
        counts.update(["flips", *problems])
        if problems:
            failures.append({"file": file, "bit": bit, "problems": problems, "detail": outcome.detail})
    return {
        "flips": len(flips),
        "by_kind": {kind: dict(counts) for kind, counts in by_kind.items()},
        "failures": failures,
    }


def problems_of(outcome: Outcome) -> list[str]:
    if outcome.status != DONE:
        return [outcome.status]
    found, by_row, by_key = (outcome.value[name] for name in ("found", "by_row", "by_key"))
    problems = [] if found else ["missed by verify"]
    problems += ["altered audio by row"] if by_row["altered"] else []
    return problems + (["altered audio by key"] if by_key["altered"] else [])
