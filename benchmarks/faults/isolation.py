"""One trial, one process: what crashes, hangs or eats memory takes nothing with it, and is told apart from an error.

Children are forked from a server that has imported the library and opened nothing, so each trial starts as a fresh
process would, in milliseconds.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from qwen_term_retrieval.errors import BadAudioError, CorpusError, PackError

OUR_ERRORS = (CorpusError, PackError, BadAudioError, FileNotFoundError)
TIME_LIMIT_S = 30.0
# Above what the process holds already; an input of kilobytes has no business with more.
MEMORY_LIMIT = 2 << 30

DONE, REFUSED, FOREIGN_ERROR, CRASH, HANG = "done", "refused", "foreign error", "crash", "hang"


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `value` is what it returned, `detail` the error, the signal or the stack."""

    status: str
    value: Any = None
    detail: str = ""


def isolated(trial: Callable[..., Any], *arguments: Any, time_limit_s: float = TIME_LIMIT_S) -> Outcome:
    """Call `trial(scratch, *arguments)` in a process of its own, with a scratch folder that is deleted after it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.faults.fuzz", "benchmarks.faults.flips"])
    scratch = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(sender, scratch, trial, arguments))
        process.start()
        sender.close()
        outcome = _outcome(receiver, process, scratch, time_limit_s)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return outcome


def _outcome(receiver: Connection, process: Any, scratch: Path, time_limit_s: float) -> Outcome:
    try:
        receiver.recv()  # It has started: the first trial waits until the server has imported the library.
        if not receiver.poll(time_limit_s):
            process.kill()
            return Outcome(HANG, detail=f"more than {time_limit_s:g} s")
        return receiver.recv()
    except EOFError:
        process.join()
        name = signal.Signals(-process.exitcode).name if process.exitcode < 0 else f"exit {process.exitcode}"
        stack = (scratch / "stack").read_text(encoding="utf-8", errors="replace")
        return Outcome(CRASH, detail=f"{name}\n{stack}")
    finally:
        process.join()


def _child(sender: Connection, scratch: Path, trial: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import huggingface_hub

    with (scratch / "stack").open("w", encoding="utf-8") as stack:
        faulthandler.enable(stack)
        _limit_memory()
        _silence()
        huggingface_hub.constants.HF_HOME = str(scratch / "hf")
        sender.send("started")
        try:
            outcome = Outcome(DONE, trial(scratch, *arguments))
        except OUR_ERRORS as error:
            outcome = Outcome(REFUSED, detail=f"{type(error).__name__}: {error}")
        except Exception:
            outcome = Outcome(FOREIGN_ERROR, detail=traceback.format_exc())
        sender.send(outcome)


def _limit_memory() -> None:
    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_LIMIT, resource.RLIM_INFINITY))


def _silence() -> None:
    """Decoders written in C complain on the error output; thousands of complaints are no report."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.dup2(null, 1)
    os.close(null)
