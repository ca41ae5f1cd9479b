"""Where the time of a call goes, as `cProfile` counts it."""

from __future__ import annotations

import cProfile
import io
import pstats
from collections.abc import Callable


def top_functions(call: Callable[[], object], lines: int = 10) -> str:
    """The functions that one call spends most time in, those called from them left out."""
    profiler = cProfile.Profile()
    profiler.runcall(call)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(lines)
    return "ncalls" + text.getvalue().partition("ncalls")[2].rstrip()
