"""Sections `packing` and `memory` of `benchmarks.data`.

`packing`: FLAC to shards on two workers against two processes that decode with soundfile and write, and do nothing
else: no checksums, no tables, no resuming, no fsync. `memory`: what packing takes at 1,000 and 50,000 clips.
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
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import soundfile
from tqdm import tqdm

from benchmarks.data.clips import BenchmarkClips, clip_name
from benchmarks.profiles import top_functions
from qwen_term_retrieval.packs.packing import pack_corpus

NUM_WORKERS = 2


def decode_and_write(paths: Sequence[Path], out: Path, *, sync: bool = False) -> None:
    with out.open("wb") as file:
        for path in paths:
            pcm, _ = soundfile.read(path, dtype="int16")
            file.write(pcm.data)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def bare_loop(sources: Sequence[Path], out: Path, *, sync: bool = False) -> None:
    """Decode the halves of `sources` in two processes."""
    out.mkdir()
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(NUM_WORKERS, context) as pool:
        halves = [sources[number::NUM_WORKERS] for number in range(NUM_WORKERS)]
        jobs = [pool.submit(decode_and_write, half, out / f"{n}.pcm", sync=sync) for n, half in enumerate(halves)]
        for job in jobs:
            job.result()


def pack(source: Path, out: Path, num_workers: int = NUM_WORKERS) -> None:
    pack_corpus(source, out, num_workers=num_workers, quiet=True)


def run_packing(clips: BenchmarkClips, *, repetitions: int) -> dict[str, Any]:
    flacs = sorted(clips.flac.glob("*.flac"))
    out = clips.folder / "packed"
    ways: dict[str, Callable[[Path], None]] = {
        "bare loop": partial(bare_loop, flacs),
        "bare loop + fsync": partial(bare_loop, flacs, sync=True),
        "qtr pack": partial(pack, clips.flac),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tqdm(total=len(ways) * (repetitions + 1), desc="packing", unit=" runs", disable=None) as progress:
        for repetition in range(repetitions + 1):
            for name, way in ways.items():
                shutil.rmtree(out, ignore_errors=True)
                os.sync()
                started = time.perf_counter()
                way(out)
                # The first repetition brings the files into memory.
                if repetition:
                    seconds[name].append(time.perf_counter() - started)
                progress.update()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    shutil.rmtree(out)
    profile = top_functions(partial(pack, clips.flac, out, 1))
    shutil.rmtree(out)
    return {
        "seconds": seconds,
        "median_seconds": medians,
        "ratio_to_bare_loop": medians["qtr pack"] / medians["bare loop"],
        "audio_hours_per_second": float(clips.lengths.sum()) / 16_000 / 3600 / medians["qtr pack"],
        "profile_of_one_worker": profile,
    }


def run_memory(clips: BenchmarkClips, sizes: Sequence[int]) -> dict[str, Any]:
    """Peak resident memory of packing, by number of clips; the corpus repeats its files under other keys."""
    num_files = len(clips.lengths)
    peaks = {}
    for size in tqdm(sizes, desc="peak memory", disable=None):
        manifest, out = clips.flac / f"repeated-{size}.jsonl", clips.folder / "packed"
        rows = ({"key": f"{n:07d}", "audio": f"{clip_name(n % num_files)}.flac", "text": f"{n}"} for n in range(size))
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        qtr = Path(sys.executable).with_name("qtr")
        command = [str(qtr), "pack", str(manifest), str(out), "--workers", str(NUM_WORKERS), "--quiet"]
        peaks[str(size)] = peak_mib(command)
        shutil.rmtree(out)
        manifest.unlink()
    return {"peak_mib": peaks}


def peak_mib(command: Sequence[str]) -> float:
    """Peak resident memory of the largest process that a command starts, itself included."""
    # Through a small process: a child's peak starts at that of the process which it was forked from.
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    result = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    return int(result.stdout.splitlines()[-1]) / 1024
