"""What an index costs beside its searches: to make, to open, to change, to keep, and to search while others write."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.search.banks import glossary_of
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.text.spellings import term_id

_SEARCHERS, _WRITERS = 8, 4
_IN_A_PROCESS = """
import json, sys, time, torch
from qwen_term_retrieval.retrieval.index import TermIndex

def resident(kind):
    lines = open("/proc/self/status").read().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(kind))

queries = torch.load(sys.argv[2])
before = resident("RssAnon"), resident("RssFile")
began = time.perf_counter()
index = TermIndex.load(sys.argv[1])
opened = time.perf_counter() - began
times = []
for query in queries:
    began = time.perf_counter()
    index.search(query[None], 10)
    times.append((time.perf_counter() - began) * 1e3)
print(json.dumps({
    "open_ms": opened * 1e3, "first_search_ms": times[0], "search_ms": sorted(times)[len(times) // 2],
    "anonymous_bytes_a_term": (resident("RssAnon") - before[0]) / len(index),
    "file_bytes_a_term": (resident("RssFile") - before[1]) / len(index),
}))
"""
_MAKE = """
import json, resource, sys, time
from pathlib import Path
from benchmarks.search.banks import glossary_of
from qwen_term_retrieval.retrieval.retriever import TermRetriever

retriever = TermRetriever.from_pretrained(sys.argv[1])
glossary = glossary_of(int(sys.argv[3]), Path(sys.argv[4]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
began = time.perf_counter()
cpu = time.process_time()
retriever.index_to(sys.argv[2], glossary)
children = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({
    "seconds": time.perf_counter() - began,
    "cpu_seconds": time.process_time() - cpu + children.ru_utime + children.ru_stime,
    "bytes_more_at_most": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before,
}))
"""


def _in_a_process(program: str, *arguments: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def making(model: str, number: int, work: Path) -> dict[str, Any]:
    """Embedding and indexing so many terms into a folder, in a process of its own."""
    glossary_of(number, work)
    folder = work / f"index-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    found = _in_a_process(_MAKE, model, folder, number, work)
    return found | {"terms": number, "terms_a_second": number / found["seconds"]}


def changing(folder: Path, clips: list[torch.Tensor], work: Path) -> dict[str, Any]:
    """Opening, first searches and memory in a new process; adding ten terms, removing ten, saving them, verifying."""
    torch.save(clips, work / "queries.pt")
    found = _in_a_process(_IN_A_PROCESS, folder, work / "queries.pt")
    copy = work / "changed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    index = TermIndex.load(copy)
    new = [Term(f"benchmark term {'x' * number}", term_id(f"benchmark term {'x' * number}")) for number in range(10)]
    vectors_ND = torch.nn.functional.normalize(torch.randn(10, index.dim), dim=1)
    gone = [index.terms[place].text for place in range(0, len(index), max(1, len(index) // 10))][:10]
    written = {path: path.stat().st_mtime_ns for path in copy.rglob("*.npy")}
    for name, work_of in {
        "add_10_ms": lambda: index.add(new, vectors_ND),
        "remove_10_ms": lambda: index.remove(gone),
        "save_ms": lambda: index.save(copy, overwrite=True),
    }.items():
        began = time.perf_counter()
        work_of()
        found[name] = (time.perf_counter() - began) * 1e3
    found["files_rewritten"] = sum(path.stat().st_mtime_ns != when for path, when in written.items() if path.is_file())
    shutil.rmtree(copy)
    return found


def beside_writers(
    vectors_ND: torch.Tensor, texts: list[str], clips: list[torch.Tensor], seconds: float
) -> dict[str, Any]:
    """Searches of eight threads beside four that rest, and beside four that change the index.

    A writer adds three of the texts, removes them, and rests for a hundredth of a second.
    """
    index = TermIndex(vectors_ND.shape[1], fingerprint="benchmark")
    index.add([Term(f"t{row}", row) for row in range(len(vectors_ND))], vectors_ND)
    rounds = [0] * _WRITERS

    def change(own: int) -> None:
        first = 3 * (own + _WRITERS * rounds[own]) % (len(texts) - 3)
        some = texts[first : first + 3]
        index.add([Term(text, term_id(text)) for text in some], vectors_ND[:3])
        index.remove(some)
        rounds[own] += 1
        time.sleep(0.01)

    def rest(_: int) -> None:
        time.sleep(0.01)

    pairs = [(_search_times(index, clips, seconds, rest), _search_times(index, clips, seconds, change)) for _ in "123"]
    alone, writing = (statistics.median(part) for part in zip(*pairs, strict=True))
    return {
        "alone_ms": alone * 1e3,
        "beside_writers_ms": writing * 1e3,
        "ratio": writing / alone,
        "terms_added_and_removed_a_second": 3 * sum(rounds) / (len(pairs) * seconds),
    }


def _search_times(index: TermIndex, clips: list[torch.Tensor], seconds: float, write: Callable[[int], None]) -> float:
    times: list[float] = []
    until = time.monotonic() + seconds

    def search(own: int) -> None:
        number = own
        while time.monotonic() < until:
            number += 1
            began = time.perf_counter()
            index.search(clips[number % len(clips)][None], 10)
            times.append(time.perf_counter() - began)

    def keep_writing(own: int) -> None:
        while time.monotonic() < until:
            write(own)

    threads = [threading.Thread(target=search, args=(own,)) for own in range(_SEARCHERS)]
    threads += [threading.Thread(target=keep_writing, args=(own,)) for own in range(_WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.median(times)
