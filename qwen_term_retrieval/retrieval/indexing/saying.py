"""Terms as arrays: how they are said and what their spellings are known by, all that takes terms one by one.

espeak-ng keeps one voice a process, and fifteen thousand terms take a core about a second; so there is a pool of
processes for many. It rests while a stretch is embedded: torch's threads and the processes would share the cores.

Shapes: T terms, R rows (the ways that terms are said), S spellings.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.retrieval.indexes.terms import key_hash, spelling_key
from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.text.pronouncing import Pronouncer
from qwen_term_retrieval.text.ways import Ways
from qwen_term_retrieval.workers import process_pool

logger = logging.getLogger(__name__)

LEAST_TERMS = 20_000
_PER_JOB = 512


@dataclass(frozen=True, eq=False)
class Said:
    """Some terms in a row.

    Args:
        num_rows_T: int32, in how many ways each is said in words.
        hashes_S: uint64, `key_hash` of each spelling.
        ways: the sounds of the rows, by each pronouncer that was asked.
    """

    num_rows_T: NDArray[np.int32]
    hashes_S: NDArray[np.uint64]
    ways: tuple[Ways, ...]

    @classmethod
    def join(cls, parts: Sequence[Said]) -> Said:
        return cls(
            np.concatenate([part.num_rows_T for part in parts]),
            np.concatenate([part.hashes_S for part in parts]),
            tuple(map(Ways.join, zip(*(part.ways for part in parts), strict=True))),
        )


def say(terms: Sequence[Term], pronouncers: Sequence[Pronouncer]) -> Said:
    """Say terms in this process.

    Raises:
        ValueError: a language has no phonemizer.
    """
    rows = [term.sayings for term in terms]
    texts = list(chain.from_iterable(rows))
    languages = [term.language for term, own in zip(terms, rows, strict=True) for _ in own]
    hashes = [key_hash(spelling_key(spelling, term.language)) for term in terms for spelling in term.spellings]
    return Said(
        np.fromiter(map(len, rows), np.int32, len(rows)),
        np.array(hashes, np.uint64),
        tuple(pronouncer.ways(texts, languages) for pronouncer in pronouncers),
    )


def say_in_stretches(
    terms: Sequence[Term], pronouncers: Sequence[Pronouncer], stretch_terms: int, done: int = 0
) -> Iterator[Said]:
    """`say` of a stretch of terms after another, from number `done` on, in several processes where that pays."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if len(terms) - done >= LEAST_TERMS and cores > 1:
        # Fork needs no `if __name__ == "__main__"` in the caller's script; the workers touch nothing that has threads.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        try:
            with process_pool(cores, context) as pool:
                while done < len(terms):
                    jobs = _submit(pool, terms[done : done + stretch_terms], pronouncers)
                    yield Said.join([job.result() for job in jobs])
                    done += stretch_terms
        except (BrokenExecutor, PackError) as error:
            # A worker was killed, or there is no room for what processes share.
            logger.warning("pronouncing goes on in one process: %s", error)
    for first in range(done, len(terms), stretch_terms):
        yield say(terms[first : first + stretch_terms], pronouncers)


def _submit(pool: Executor, terms: Sequence[Term], pronouncers: Sequence[Pronouncer]) -> list[Future[Said]]:
    return [pool.submit(say, terms[first : first + _PER_JOB], pronouncers) for first in range(0, len(terms), _PER_JOB)]
