"""Who makes parts: processes here, any `concurrent.futures.Executor`, or a `map` function such as Modal's."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from qwen_term_retrieval.errors import PackError

Job = TypeVar("Job")
Result = TypeVar("Result")

JOBS_PER_WORKER = 4
_LEAST_JOBS = 16


@dataclass(frozen=True)
class MapExecutor:
    """Lets a `map` function do the work: one that takes jobs and yields the result of each, in order.

    Workers must see the folder of the pack under the same path. With Modal:

    >>> from qwen_term_retrieval import MapExecutor, make_part
    >>> make = app.function(volumes={"/packs": volume})(make_part)
    >>> pack_corpus(corpus, "/packs/mine", executor=MapExecutor(make.map))

    `num_jobs` is how many jobs go into one call.
    """

    map_function: Callable[[Iterable[Any]], Iterable[Any]]
    num_jobs: int = 256


Pool = Executor | MapExecutor | None


@contextmanager
def worker_pool(executor: Pool, num_workers: int | None) -> Iterator[Pool]:
    """The executor given, or else a pool of `num_workers` processes (None: one a core); with one, this process."""
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, not {num_workers}")
    if num_workers is None:
        num_workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if executor is not None or num_workers <= 1:
        yield executor
        return
    # Fork needs no `if __name__ == "__main__"` in the caller's script; the workers touch nothing that has threads.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with process_pool(num_workers, context) as pool:
        yield pool


@contextmanager
def process_pool(num_workers: int, context: BaseContext) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that ends with the block: on an error at the end of what is under way, on Ctrl-C at once.

    Raises:
        PackError: there is no room for what processes share.
    """
    try:
        pool = ProcessPoolExecutor(num_workers, context, initializer=end_with_parent, initargs=(os.getpid(),))
    except OSError as error:
        raise _explained(error) from error
    try:
        with _without_ctrl_c():
            pool.submit(int)  # which forks the workers
        yield pool
    except KeyboardInterrupt:
        workers = list((pool._processes or {}).values())  # Python 3.14 has `terminate_workers`
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        raise
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done: while a process is forked, Python (3.11) may lose it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _explained(error: OSError) -> Exception:
    """Locks and queues of processes lie in /dev/shm, which a container gives 64 MB."""
    if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENOENT):
        return error
    return PackError(
        f"processes cannot share memory here ({error.strerror}): /dev/shm is full or missing. Free it (see "
        "`df -h /dev/shm`; a container takes --shm-size=1g), or use one process: workers=1"
    )


def end_with_parent(parent: int) -> None:
    """Initializer of a pool's workers, which else wait for work for ever when their parent, of this id, is killed.

    Ctrl-C reaches all processes of a terminal: the parent alone answers it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def results_in_order(make: Callable[[Job], Result], jobs: Iterator[Job], pool: Pool) -> Iterator[Result]:
    """What `make` returns for each job, with a bounded number of jobs under way.

    Raises:
        PackError: a worker died.
    """
    if pool is None:
        return map(make, jobs)
    if isinstance(pool, MapExecutor):
        return _mapped(jobs, pool)
    return _submitted(make, jobs, pool)


def _mapped(jobs: Iterator[Any], pool: MapExecutor) -> Iterator[Any]:
    while batch := list(islice(jobs, pool.num_jobs)):
        yield from pool.map_function(batch)


def _submitted(make: Callable[[Job], Result], jobs: Iterator[Job], pool: Executor) -> Iterator[Result]:
    window = max(_LEAST_JOBS, JOBS_PER_WORKER * (os.cpu_count() or 1))
    pending: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(make, job))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenExecutor as error:
        raise PackError("a packing worker died (out of memory?); run again to go on, with fewer workers") from error
    finally:
        for future in pending:
            future.cancel()
