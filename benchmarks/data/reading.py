"""Section `reading` of `benchmarks.data`: every row shuffled, warm, repetitions interleaved; and how fast memory is."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.data.clips import BenchmarkClips
from benchmarks.data.measure import Row, RowError, RowProcess
from benchmarks.data.peers import PEERS
from benchmarks.data.rows import ROWS

logger = logging.getLogger(__name__)

UNIT = "np.memmap loop"
OURS = "ours, by length"
FLOOR = "read, keep nothing"
COPY_BYTES = 1 << 28


def make_peers_environment(folder: Path, torch_version: str) -> dict[str, str]:
    """Install each peer into a virtual environment of its own kind; returns what could not be had, and why."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    failed = {}
    torch = f"torch=={torch_version}"
    packages = ["numpy", "soundfile", *dict.fromkeys(peer.package for peer in PEERS.values())]
    for package in tqdm(packages, desc="installing peers", disable=None):
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", torch, package]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            failed[package] = (result.stderr.strip().splitlines() or ["pip failed"])[-1]
    return failed


def peer_versions(python: Path) -> dict[str, str]:
    packages = list(dict.fromkeys(peer.package for peer in PEERS.values()))
    code = f"""
import importlib.metadata as metadata
for name in {packages!r}:
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        pass
"""
    result = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return dict(line.split() for line in result.stdout.splitlines())


def own_rows(clips: BenchmarkClips) -> list[Row]:
    return [
        Row(name, does, [sys.executable, "-m", "benchmarks.data.rows", name, str(clips.folder)])
        for name, (does, _) in ROWS.items()
    ]


def peer_rows(clips: BenchmarkClips, python: Path, missing: dict[str, str]) -> list[Row]:
    """Rows of the peers, their copies of the clips written; a peer that fails is a row that says so."""
    rows = []
    for name, peer in tqdm(PEERS.items(), desc="peers' formats", disable=None):
        program = [str(python), "-W", "ignore", "-m", "benchmarks.data.peers"]
        row = Row(name, peer.does, [*program, "serve", name, str(clips.folder)])
        if peer.package in missing:
            row.error = f"not installed: {missing[peer.package]}"
        else:
            prepared = subprocess.run([*program, "prepare", name, str(clips.folder)], capture_output=True, text=True)
            if prepared.returncode:
                row.error = (prepared.stderr.strip().splitlines() or ["failed"])[-1]
        rows.append(row)
    return rows


def measure_warm(rows: list[Row], clips: BenchmarkClips, repetitions: int) -> None:
    """Time `repetitions` passes of each row after one that warms it up, all rows in turn each time."""
    processes = {
        row.name: RowProcess(row.name, row.command, clips.folder / "logs" / f"{row.name}.log")
        for row in rows
        if not row.error
    }
    try:
        with tqdm(total=len(processes) * (repetitions + 1), desc="reading", unit=" passes", disable=None) as progress:
            for seed in range(repetitions + 1):
                for row in rows:
                    if not row.error:
                        add_pass(row, processes[row.name], seed, clips)
                        progress.update()
                if seed == 0:
                    for row in rows:
                        row.forget()
    finally:
        for process in processes.values():
            process.close()


def add_pass(row: Row, process: RowProcess, seed: int, clips: BenchmarkClips) -> None:
    """Time one pass; a row that fails or delivers another number of samples gets an error instead."""
    try:
        figures = process.one_pass(seed)
    except RowError as error:
        row.error = str(error)
        logger.warning("%s", error)
        return
    expected = int(clips.lengths.sum())
    if figures["samples"] != expected:
        row.error = f"delivered {figures['samples']} samples of {expected}"
    else:
        row.add(figures)


def copy_bandwidth() -> float:
    """Bytes a second that one thread copies between arrays larger than any cache; the best of five."""
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.ones(COPY_BYTES, np.uint8)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return COPY_BYTES / min(seconds)


def profile_of(name: str, clips: BenchmarkClips) -> str:
    command = [sys.executable, "-m", "benchmarks.data.rows", name, str(clips.folder), "--profile"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run(
    clips: BenchmarkClips, *, repetitions: int, peers_python: Path | None, missing: dict[str, str]
) -> dict[str, Any]:
    """The table of warm reading, the floor that memory sets, and the profile of our own row."""
    rows = own_rows(clips)
    if peers_python is not None:
        rows += peer_rows(clips, peers_python, missing)
    measure_warm(rows, clips, repetitions)
    bandwidth = copy_bandwidth()
    bytes_per_clip = 2 * float(clips.lengths.mean())
    return {
        "rows": {row.name: row.to_json() for row in rows},
        "repetitions": repetitions,
        "peers": peer_versions(peers_python) if peers_python is not None else {},
        "copy_bytes_per_second": bandwidth,
        "bytes_per_clip": bytes_per_clip,
        "profile": profile_of(OURS, clips),
    }
