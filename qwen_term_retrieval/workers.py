"""Jobs over worker processes, or any executor: results in order, a bounded number of jobs under way."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@contextmanager
def worker_pool(executor: Executor | None, num_workers: int | None) -> Iterator[Executor | None]:
    """The executor given, or else `num_workers` processes (None: one a core); None where one worker is asked for."""
    num_workers = num_cores() if num_workers is None else num_workers
    if executor is not None or num_workers <= 1:
        yield executor
        return
    # Fork needs no `if __name__ == "__main__"` in the caller's script.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(os.getpid(),)) as pool:
        yield pool


def ordered_results(
    function: Callable[[Job], Result], jobs: Iterable[Job], pool: Executor | None
) -> Iterator[tuple[Job, Result]]:
    """`(job, function(job))` in the order of the jobs; without a pool the jobs run here.

    Raises:
        BrokenProcessPool: a worker process died.
    """
    if pool is None:
        yield from ((job, function(job)) for job in jobs)
        return
    window = 4 * num_cores()
    pending: deque[tuple[Job, Future[Result]]] = deque()
    try:
        for job in jobs:
            pending.append((job, pool.submit(function, job)))
            if len(pending) >= window:
                yield pending[0][0], pending[0][1].result()
                pending.popleft()
        while pending:
            yield pending[0][0], pending[0][1].result()
            pending.popleft()
    finally:
        for _, future in pending:
            future.cancel()


def _start_worker(parent: int) -> None:
    """Let the worker end with its parent: a pool outlives one killed with SIGKILL, waiting for work for ever."""
    # One process a core: a tokenizer's own threads would only fight, and after a fork it warns of them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
