"""Section `large` of `benchmarks.data`: a pack of 5,000,000 rows; what it costs to open, to share and to search.

    python -m benchmarks.data.large open PACK CACHE
    python -m benchmarks.data.large workers PACK CACHE START_METHOD ROWS|READER

The rows refer to the clips of the small pack over and over, each row under a key of its own. Each measurement has a
process of its own, which prints JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, load_dataset
from pyarrow import compute, parquet
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from benchmarks.data.clips import BenchmarkClips
from benchmarks.data.loader import as_it_is
from benchmarks.data.measure import CLIPS_PER_BATCH
from qwen_term_retrieval.packs.clip_reader import ClipReader
from qwen_term_retrieval.packs.format.key_index import keys_name, write_keys
from qwen_term_retrieval.packs.format.pack_json import read_pack_json, write_pack_json
from qwen_term_retrieval.packs.pack import Pack
from qwen_term_retrieval.packs.row_schema import table_name
from qwen_term_retrieval.packs.writing.tables import ROWS_PER_GROUP
from qwen_term_retrieval.storage.checksums import file_xxh64

SPLIT = "train"
ROWS_PER_CHUNK = 64 * ROWS_PER_GROUP
NUM_LOOKUPS = 20_000
NUM_WORKERS = 2
BATCHES_READ = 300


def make_large_pack(small: Path, large: Path, num_rows: int) -> None:
    """A pack of `num_rows` rows over the shards of `small`; it appears whole or not at all."""
    if large.is_dir() and Pack.open(large).num_clips == num_rows:
        return
    partial = large.with_name(f"{large.name}.partial")
    for old in (partial, large):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir()
    (increment,) = read_pack_json(small)["increments"]
    for path in [*small.glob("shard_*"), small / "README.md"]:
        os.link(path, partial / path.name)
    of_small = parquet.read_table(small / increment["splits"][SPLIT]["file"])
    chunks = _write_table(of_small, partial / table_name(SPLIT, 0), num_rows)
    _write_keys(of_small, chunks, partial / keys_name(0), num_rows)
    totals = {"num_clips": num_rows, "num_no_term_clips": 0, "duration_s": _seconds(of_small, num_rows)}
    increment["uuid"] = str(uuid.UUID(int=num_rows))
    increment["splits"] = {SPLIT: {"file": table_name(SPLIT, 0), **totals}}
    names = [table_name(SPLIT, 0), keys_name(0), *(path.name for path in partial.glob("*.npz"))]
    files = {name: {"bytes": (partial / name).stat().st_size, "xxh64": file_xxh64(partial / name)} for name in names}
    write_pack_json(partial, read_pack_json(small)["sampling_rate"], [increment], files)
    partial.rename(large)


def key_column(first: int, count: int) -> pa.Array:
    numbers = pa.array(np.arange(first, first + count)).cast(pa.string())
    folders = pa.array(np.arange(first, first + count) // 1000).cast(pa.string())
    return compute.binary_join_element_wise("recordings", folders, compute.utf8_lpad(numbers, 9, "0"), "/")


def _write_table(of_small: pa.Table, path: Path, num_rows: int) -> list[pa.Array]:
    """Write the rows; returns their keys."""
    chunks = []
    with parquet.ParquetWriter(path, of_small.schema, compression="zstd") as writer:
        for first in tqdm(range(0, num_rows, ROWS_PER_CHUNK), desc="large pack", unit=" chunks", disable=None):
            count = min(ROWS_PER_CHUNK, num_rows - first)
            keys = key_column(first, count)
            rows = of_small.take(pa.array(np.arange(first, first + count) % len(of_small)))
            rows = rows.set_column(rows.column_names.index("key"), of_small.schema.field("key"), keys)
            writer.write_table(rows.cast(of_small.schema), row_group_size=ROWS_PER_GROUP)
            chunks.append(keys)
    return chunks


def _write_keys(of_small: pa.Table, chunks: list[pa.Array], path: Path, num_rows: int) -> None:
    rows = np.arange(num_rows)
    audio = of_small["audio"].combine_chunks()
    places = {name: audio.field(name).to_numpy()[rows % len(of_small)] for name in ("shard", "offset", "length")}
    write_keys(path, pa.chunked_array(chunks), splits=[SPLIT], split=np.zeros(num_rows, np.int16), row=rows, **places)


def _seconds(of_small: pa.Table, num_rows: int) -> float:
    return float(compute.mean(of_small["duration"]).as_py()) * num_rows


def memory_of(process: str) -> dict[str, float]:
    """MiB of a process: anonymous and file pages it can see, and pages that no other process shares with it."""
    fields = _kib_fields(f"/proc/{process}/status") | _kib_fields(f"/proc/{process}/smaps_rollup")
    return {
        "RssAnon": fields["RssAnon"] / 1024,
        "RssFile": fields["RssFile"] / 1024,
        "private": (fields["Private_Clean"] + fields["Private_Dirty"]) / 1024,
    }


def _kib_fields(path: str) -> dict[str, int]:
    fields = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            fields[name] = int(value.split()[0])
    return fields


def open_once(pack: Path, cache: Path) -> dict[str, Any]:
    before = memory_of("self")
    started = time.perf_counter()
    rows = _load(pack, cache)
    loaded = time.perf_counter()
    reader = ClipReader(rows)
    opened = time.perf_counter()
    reader.views([len(rows) - 1])
    after = memory_of("self")
    return {
        "rows": len(rows),
        "load_dataset_seconds": loaded - started,
        "clip_reader_seconds": opened - loaded,
        "added_mib": {name: after[name] - before[name] for name in after},
    }


def _load(pack: Path, cache: Path) -> Dataset:
    return load_dataset(str(pack), split=SPLIT, cache_dir=str(cache))


def lookups_per_second(pack: Path, num_rows: int) -> dict[str, float]:
    numbers = np.random.default_rng(0).integers(0, num_rows, NUM_LOOKUPS)
    keys = [key_column(int(number), 1)[0].as_py() for number in numbers]
    started = time.perf_counter()
    opened = Pack.open(pack)
    opened.find(keys[0])
    first = time.perf_counter() - started
    started = time.perf_counter()
    wrong = sum(opened.find(key).row != number for key, number in zip(keys, numbers, strict=True))
    seconds = time.perf_counter() - started
    if wrong:
        raise RuntimeError(f"{wrong} of {NUM_LOOKUPS} keys were found at another row")
    return {"first_lookup_seconds": first, "lookups_per_second": NUM_LOOKUPS / seconds}


class Lengths(TorchDataset):
    """Row numbers in, lengths out: the clips are found and touched, but no batch is built that would be counted too."""

    def __init__(self, reader: ClipReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitems__(self, indices: Sequence[int]) -> list[int]:
        return [int(np.count_nonzero(view)) for view in self.reader.views(indices)]


def workers_memory(pack: Path, cache: Path, start_method: str, through: str) -> dict[str, float]:
    """Memory of the larger of the DataLoader's workers after `BATCHES_READ` random batches, in MiB."""
    rows = _load(pack, cache)
    loader = DataLoader(
        Lengths(ClipReader(rows)) if through == "READER" else rows,
        CLIPS_PER_BATCH,
        # With replacement: a permutation of all rows would be memory of the parent that forked workers inherit.
        sampler=RandomSampler(rows, replacement=True, num_samples=BATCHES_READ * CLIPS_PER_BATCH),
        num_workers=NUM_WORKERS,
        multiprocessing_context=start_method,
        collate_fn=as_it_is,
        persistent_workers=True,
    )
    batches = iter(loader)
    for _ in range(BATCHES_READ):
        next(batches)
    measured = [memory_of(str(process.pid)) for process in multiprocessing.active_children()]
    return {name: max(each[name] for each in measured) for name in measured[0]}


def _in_a_process(*arguments: object) -> Any:
    command = [sys.executable, "-m", "benchmarks.data.large", *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def run(clips: BenchmarkClips, *, num_rows: int, repetitions: int) -> dict[str, Any]:
    """Seconds to open, MiB that workers add to those of the small pack, key lookups a second."""
    large, cache = clips.folder / "large", clips.folder / "large-cache"
    make_large_pack(clips.pack, large, num_rows)
    shutil.rmtree(cache, ignore_errors=True)
    first = _in_a_process("open", large, cache)
    later = [_in_a_process("open", large, cache) for _ in tqdm(range(repetitions), desc="opening", disable=None)]
    memory = {}
    ways = [(method, through) for method in ("fork", "spawn") for through in ("READER", "ROWS")]
    for method, through in tqdm(ways, desc="workers' memory", disable=None):
        of_small = _in_a_process("workers", clips.pack, clips.folder / "cache", method, through)
        of_large = _in_a_process("workers", large, cache, method, through)
        added = {name: of_large[name] - of_small[name] for name in of_large}
        memory[f"{method}, {through.lower()}"] = {"small": of_small, "large": of_large, "added_mib": added}
    return {
        "rows": num_rows,
        "table_bytes": (large / table_name(SPLIT, 0)).stat().st_size,
        "key_index_bytes": (large / keys_name(0)).stat().st_size,
        "first_load_seconds": first["load_dataset_seconds"],
        "later_load_seconds": statistics.median(each["load_dataset_seconds"] for each in later),
        "clip_reader_seconds": statistics.median(each["clip_reader_seconds"] for each in later),
        "later": later,
        "workers": memory,
        **lookups_per_second(large, num_rows),
    }


def main() -> None:
    action, pack, cache = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    figures = open_once(pack, cache) if action == "open" else workers_memory(pack, cache, *sys.argv[4:6])
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
