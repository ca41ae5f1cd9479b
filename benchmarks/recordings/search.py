"""One search of a recording, in a process of its own, so that its memory at the peak is its own.

python -m benchmarks.recordings.search MODEL DTYPE TERMS.txt RECORDING THREADS THRESHOLD
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from qwen_term_retrieval.retrieval.retriever import TermRetriever


def measured(model: str, dtype: str, terms: Path, recording: Path, threads: int, threshold: float) -> dict[str, Any]:
    """Seconds, processor seconds, MB at the peak, MB before the search, seconds to the first match, and matches."""
    arguments = [model, dtype, str(terms), str(recording), str(threads), str(threshold)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.recordings.search", *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(model: str, dtype: str, terms: str, recording: str, threads: str, threshold: str) -> None:
    torch.set_num_threads(int(threads))
    retriever = TermRetriever.from_pretrained(model, device="cpu", dtype=dtype)
    retriever.index(terms, show_progress=False)
    before, first, number = _peak_mb(), None, 0
    started, cpu = time.perf_counter(), time.process_time()
    for _ in retriever.each_time(recording, threshold=float(threshold)):
        number += 1
        first = time.perf_counter() - started if first is None else first
    result = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": _peak_mb(),
        "before_mb": before,
        "first_match_s": first,
        "matches": number,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
