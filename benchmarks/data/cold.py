"""Section `cold` of `benchmarks.data`: shuffled reading from the disk, against `os.pread` of the same bytes.

Every pass has a process of its own: pages that a live map holds cannot be dropped. The cache is emptied of the row's
files by `posix_fadvise`, and as root of everything, and what is still in memory is counted, and reported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.data.clips import BenchmarkClips
from benchmarks.data.measure import Pass, Row, RowError, RowProcess, serve, shuffled_batches
from benchmarks.data.peers import PEERS
from benchmarks.data.reading import add_pass, own_rows, peer_rows

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
# Opening a row maps the headers, and the kernel reads ahead of them.
WARM_SHARE_ALLOWED = 0.01
FILES_PER_CALL = 2000
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
    resident = size = 0
    for batch in (files[start : start + FILES_PER_CALL] for start in range(0, len(files), FILES_PER_CALL)):
        command = ["fincore", "--bytes", "--raw", "--noheadings", "--output", "RES,SIZE", *batch]
        numbers = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        resident += sum(map(int, numbers[::2]))
        size += sum(map(int, numbers[1::2]))
    return resident / max(size, 1)


def folder_of(row: str, clips: BenchmarkClips) -> Path:
    """Where a row's samples lie."""
    if row in PEERS:
        return clips.folder / "peers" / PEERS[row].folder
    return {"soundfile, WAV": clips.wav, "HF Audio(decode=False)": clips.wav, "soundfile, FLAC": clips.flac}.get(
        row, clips.pack
    )


def measure_cold(rows: list[Row], clips: BenchmarkClips, repetitions: int) -> dict[str, float]:
    """Add cold passes to each row; returns the largest share of its files that was in memory before one."""
    warm_shares: dict[str, float] = {}
    with tqdm(total=len(rows) * repetitions, desc="cold reading", unit=" passes", disable=None) as progress:
        for seed in range(1, repetitions + 1):
            for row in rows:
                if not row.error:
                    share = _cold_pass(row, seed, clips)
                    warm_shares[row.name] = max(share, warm_shares.get(row.name, 0.0))
                progress.update()
    return warm_shares


def _cold_pass(row: Row, seed: int, clips: BenchmarkClips) -> float:
    process = RowProcess(row.name, row.command, clips.folder / "logs" / f"cold {row.name}.log")
    folder = folder_of(row.name, clips)
    try:
        process.wait_until_ready()
        drop_from_cache(folder)
        share = share_in_cache(folder)
        add_pass(row, process, seed, clips)
    except RowError as error:
        row.error = str(error)
        share = 0.0
    finally:
        process.close()
    return share


def run(
    clips: BenchmarkClips, *, repetitions: int, peers_python: Path | None, missing: dict[str, str]
) -> dict[str, Any]:
    pread = Row(PREAD, "the same bytes, shuffled", [sys.executable, "-m", "benchmarks.data.cold", str(clips.folder)])
    rows = [pread, *own_rows(clips)]
    if peers_python is not None:
        rows += peer_rows(clips, peers_python, missing)
    warm_shares = measure_cold(rows, clips, repetitions)
    return {
        "rows": {
            row.name: row.to_json() | {"in_cache_before": warm_shares.get(row.name), "cold": is_cold(row, warm_shares)}
            for row in rows
        },
        "repetitions": repetitions,
        "bytes": 2 * int(clips.lengths.sum()),
    }


def is_cold(row: Row, warm_shares: dict[str, float]) -> bool:
    return warm_shares.get(row.name, 1.0) <= WARM_SHARE_ALLOWED


def main() -> None:
    serve(lambda: open_pread(BenchmarkClips(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
