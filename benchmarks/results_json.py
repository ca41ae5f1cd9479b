"""Benchmark results as JSON: the numbers, with the day, the machine and the versions they were measured on.

The machine is described by what explains a timing (processor, cores, memory) and by nothing that identifies it.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from qwen_term_retrieval.storage.atomic import atomic_file

RESULTS = Path(__file__).parent / "results"
_NUMBERS = re.compile(r"\[\n\s+([^\[\]{}\"]+?)\n\s+\]")


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def versions(packages: Sequence[str]) -> dict[str, str]:
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def write_results(path: Path, results: Mapping[str, Any], *, packages: Sequence[str]) -> None:
    """Write `results` with date, machine and the versions of `packages`; the file appears whole or not at all.

    A list of numbers, such as the ranks of a run, stands in one line.
    """
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(packages),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(as_text(about | dict(results)).encode())


def as_text(results: Mapping[str, Any]) -> str:
    indented = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", indented)
