"""Section `cold` of `benchmarks.data`: shuffled reading from the disk, against `os.pread` of the same bytes.

Every pass has a process of its own: pages that a live map holds cannot be dropped. The cache is emptied of the pack's
files by `posix_fadvise`, and as root of everything, then counted: a pass that finds pages in memory is not used.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.data_clips import BenchmarkClips
from benchmarks.data_measure import Pass, Row, RowProcess, serve, shuffled_batches
from benchmarks.data_reading import own_rows

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
# Opening a row maps the headers, and the kernel reads ahead of them.
WARM_SHARE_ALLOWED = 0.01
PREAD = "os.pread"


def open_pread(clips: BenchmarkClips) -> Pass:
    """The floor: the bytes of each clip, shuffled, one system call a clip, into fresh memory."""
    rows = clips.dataset().with_format("arrow")[:]["audio"].combine_chunks()
    places = np.stack([rows.field("offset").to_numpy(), rows.field("length").to_numpy()], axis=1) * 2
    (shard,) = clips.pack.glob("shard_*.dat")
    descriptor = os.open(shard, os.O_RDONLY)

    def one_pass(seed: int) -> tuple[int, int]:
        num_samples = 0
        for batch in shuffled_batches(len(places), seed):
            for offset, num_bytes in places[batch].tolist():
                num_samples += len(os.pread(descriptor, num_bytes, offset)) // 2
        return len(places), num_samples

    return one_pass


def drop_from_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
    if os.geteuid() == 0 and os.access(DROP_CACHES, os.W_OK):
        DROP_CACHES.write_text("1\n")


def share_in_cache(folder: Path) -> float:
    """Share of a folder's bytes that are in the page cache, as `fincore` counts them."""
    files = [str(path) for path in folder.rglob("*") if path.is_file()]
    command = ["fincore", "--bytes", "--raw", "--noheadings", "--output", "RES,SIZE", *files]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    resident, sizes = sum(map(int, lines[::2])), sum(map(int, lines[1::2]))
    return resident / max(sizes, 1)


def measure_cold(rows: list[Row], clips: BenchmarkClips, repetitions: int) -> list[float]:
    """Add cold passes to each row; returns the share of the pack that was in memory before each."""
    warm_shares = []
    with tqdm(total=len(rows) * repetitions, desc="cold reading", unit=" passes", disable=None) as progress:
        for seed in range(1, repetitions + 1):
            for row in rows:
                process = RowProcess(row.name, row.command, clips.folder / "logs" / f"cold {row.name}.log")
                try:
                    process.wait_until_ready()
                    drop_from_cache(clips.folder / "pack")
                    warm_shares.append(share_in_cache(clips.folder / "pack"))
                    row.add(process.one_pass(seed))
                finally:
                    process.close()
                progress.update()
    return warm_shares


def run(clips: BenchmarkClips, *, repetitions: int) -> dict[str, Any]:
    pread = Row(PREAD, "the same bytes, shuffled", [sys.executable, "-m", "benchmarks.data_cold", str(clips.folder)])
    rows = [pread, *(row for row in own_rows(clips) if row.name in ("np.memmap loop", "ours, shuffled batches"))]
    warm_shares = measure_cold(rows, clips, repetitions)
    warmest = max(warm_shares)
    return {
        "rows": {row.name: row.to_json() for row in rows},
        "repetitions": repetitions,
        "largest_share_in_cache_before_a_pass": warmest,
        "is_cold": warmest <= WARM_SHARE_ALLOWED,
        "bytes": 2 * int(clips.lengths.sum()),
    }


def main() -> None:
    serve(lambda: open_pread(BenchmarkClips(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
