"""How a row of `benchmarks.data` is timed: a process a row, one pass over all clips whenever the parent asks for one.

The parent starts every row's process, lets each open its data, and then asks them in turn, so that the repetitions of
all rows interleave and none runs beside another. Needs numpy alone: the peers' environment does not have this library.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CLIPS_PER_BATCH = 64
REPLY_TIMEOUT_S = 1800
# One pass over the clips in the order of a seed; returns clips and samples delivered.
Pass = Callable[[int], tuple[int, int]]


def shuffled_batches(num_clips: int, seed: int) -> Iterator[np.ndarray]:
    """Batches of `CLIPS_PER_BATCH` clip numbers, in an order that follows from the seed."""
    order = np.random.default_rng(seed).permutation(num_clips)
    return (order[start : start + CLIPS_PER_BATCH] for start in range(0, num_clips, CLIPS_PER_BATCH))


def passes_over(clip_at: Callable[[int], np.ndarray], num_clips: int) -> Pass:
    """A pass that gathers the clips of each shuffled batch in a list."""

    def one_pass(seed: int) -> tuple[int, int]:
        batches = ([clip_at(int(number)) for number in batch] for batch in shuffled_batches(num_clips, seed))
        return consume(batches)

    return one_pass


def batched(clips: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Clips of a stream in lists of `CLIPS_PER_BATCH`."""
    batch = []
    for clip in clips:
        batch.append(clip)
        if len(batch) == CLIPS_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def consume(batches: Iterator[Sequence[np.ndarray]]) -> tuple[int, int]:
    num_clips = num_samples = 0
    for batch in batches:
        num_clips += len(batch)
        num_samples += sum(len(clip) for clip in batch)
    return num_clips, num_samples


def serve(open_row: Callable[[], Pass]) -> None:
    """Answer each line of stdin, a seed, with the figures of one pass.

    The answers have the standard output for themselves: what a library prints goes to the error output.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    one_pass = open_row()
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        num_clips, num_samples = one_pass(int(line))
        figures = {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "clips": num_clips,
            "samples": num_samples,
        }
        print(json.dumps(figures), file=answers)


class RowError(RuntimeError):
    """A row's process died or did not answer; the message ends with what it last said."""


class RowProcess:
    """The parent's end of `serve`."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self._log = log
        self._ready = False
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
            )

    def wait_until_ready(self) -> None:
        if not self._ready:
            self._answer()
            self._ready = True

    def one_pass(self, seed: int) -> dict[str, Any]:
        self.wait_until_ready()
        requests = self._process.stdin
        if requests is None or self._process.poll() is not None:
            raise RowError(self._last_words())
        requests.write(f"{seed}\n")
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        answers = self._process.stdout
        if answers is None or not select.select([answers], [], [], REPLY_TIMEOUT_S)[0]:
            raise RowError(f"{self.name}: no answer in {REPLY_TIMEOUT_S} s")
        line = answers.readline()
        if not line:
            raise RowError(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{self.name}: {lines[-1] if lines else 'no answer'}"


@dataclass
class Row:
    """A row of the table: what delivers the clips, and what came of it."""

    name: str
    does: str
    command: list[str]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    clips: int = 0
    samples: int = 0
    error: str = ""

    @property
    def clips_per_second(self) -> float:
        return self.clips / statistics.median(self.seconds) if self.seconds else float("nan")

    def add(self, figures: dict[str, Any]) -> None:
        self.seconds.append(figures["seconds"])
        self.cpu_seconds.append(figures["cpu_seconds"])
        self.clips, self.samples = figures["clips"], figures["samples"]

    def forget(self) -> None:
        """Drop the passes so far, which warmed caches up."""
        self.seconds.clear()
        self.cpu_seconds.clear()

    def to_json(self) -> dict[str, Any]:
        if self.error:
            return {"does": self.does, "error": self.error}
        return {
            "does": self.does,
            "clips_per_second": self.clips_per_second,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "clips": self.clips,
            "samples": self.samples,
        }
