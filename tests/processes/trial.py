"""A trial for `benchmarks.faults.isolation` that ends as it is told; a file of its own, since children import it."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

from benchmarks.faults.isolation import CRASH, FOREIGN_ERROR, HANG, REFUSED
from qwen_term_retrieval.errors import PackError


def end_by(scratch: Path, how: str) -> str:
    if how == CRASH:
        ctypes.string_at(0)
    if how == HANG:
        time.sleep(60)
    if how == REFUSED:
        raise PackError("a damaged pack")
    if how == FOREIGN_ERROR:
        raise ZeroDivisionError
    return "fine"
