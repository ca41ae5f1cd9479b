"""Many texts pronounced in several processes at once: espeak-ng keeps one voice a process, and its lock one thread.

`phoneme_processes` keeps a pool for as long as a glossary is read; phonemizers that gain from it ask for it by
`in_processes`. Twenty thousand texts take a core about a second, a pool starts in a tenth of one.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager

from qwen_term_retrieval.workers import end_with_parent

logger = logging.getLogger(__name__)

LEAST_TEXTS = 20_000
_LEAST_AT_ONCE = 2048
_PER_JOB = 512

_pool: ProcessPoolExecutor | None = None


@contextmanager
def phoneme_processes(num_texts: int) -> Iterator[None]:
    """Pronounce in several processes inside of this, where there are enough texts and cores."""
    global _pool
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if _pool is not None or num_texts < LEAST_TEXTS or cores < 2:
        yield
        return
    # Fork needs no `if __name__ == "__main__"` in the caller's script; the workers touch nothing that has threads.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(cores, context, initializer=end_with_parent, initargs=(os.getpid(),)) as pool:
        _pool = pool
        try:
            yield
        finally:
            _pool = None


def in_processes(say: Callable[[str, Sequence[str]], list[str]], name: str, texts: Sequence[str]) -> list[str] | None:
    """What `say(name, texts)` gives, a part of the texts in each process; None where that does not pay.

    `say` is a function of a module, and what it gives a string a text: strings pass from process to process fast.
    """
    pool = _pool
    if pool is None or len(texts) < _LEAST_AT_ONCE:
        return None
    jobs = [texts[first : first + _PER_JOB] for first in range(0, len(texts), _PER_JOB)]
    try:
        return [each for part in pool.map(say, [name] * len(jobs), jobs) for each in part]
    except (BrokenExecutor, RuntimeError) as error:
        # The pool is another thread's, and was closed; or a worker was killed.
        logger.warning("pronouncing goes on in one process: %s", error)
        return None
