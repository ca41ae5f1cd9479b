"""One clip's windows in a bank: numpy, FAISS and ours take turns at each clip.

Milliseconds are medians over clips; CPU milliseconds are those of all threads, which a busy machine changes less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch

from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.text.glossary import Term

TOP = 10
Way = Callable[[np.ndarray], np.ndarray]


def measure(
    vectors_ND: torch.Tensor, clips: list[torch.Tensor], holds: list[str], *, with_faiss: bool
) -> list[dict[str, Any]]:
    """A row a way: wall and CPU milliseconds a clip, the ratio to numpy, recall of numpy's ten best."""
    array_ND = np.ascontiguousarray(vectors_ND.numpy())
    ways: dict[str, Way] = {"numpy matmul + max": lambda query: _by_numpy(array_ND, query)}
    if with_faiss:
        flat = faiss.IndexFlatIP(array_ND.shape[1])
        flat.add(array_ND)
        ways["FAISS flat"] = lambda query: _by_faiss(flat, query)
    for hold in holds:
        ways[f"ours, {hold}"] = _ours(vectors_ND, hold)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    recalls: dict[str, list[float]] = {name: [] for name in ways}
    for number, clip in enumerate([clips[0], *clips]):
        best: set[int] = set()
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            rows = way(clip.numpy())
            taken = (time.perf_counter() - wall, time.process_time() - cpu)
            best = best or set(rows.tolist())
            if number:  # the first warms up
                times[name].append(taken)
                recalls[name].append(len(best & set(rows.tolist())) / len(best))
    rows = []
    for name in ways:
        wall, cpu = (statistics.median(column) * 1e3 for column in zip(*times[name], strict=True))
        rows.append({"way": name, "ms": wall, "cpu_ms": cpu, "recall": statistics.mean(recalls[name])})
    for row in rows:
        row["times_numpy"] = rows[0]["ms"] / row["ms"]
        row["times_numpy_cpu"] = rows[0]["cpu_ms"] / row["cpu_ms"]
    return rows


def _by_numpy(array_ND: np.ndarray, query_WD: np.ndarray) -> np.ndarray:
    scores_N = (array_ND @ query_WD.T).max(axis=1)
    top = np.argpartition(scores_N, -TOP)[-TOP:]
    return top[np.argsort(-scores_N[top])]


def _by_faiss(flat: Any, query_WD: np.ndarray) -> np.ndarray:
    scores_WK, rows_WK = flat.search(query_WD, TOP)
    order = np.argsort(-scores_WK.ravel(), kind="stable")
    return np.array(list(dict.fromkeys(rows_WK.ravel()[order].tolist()))[:TOP])


def _ours(vectors_ND: torch.Tensor, hold: str) -> Way:
    index = TermIndex(vectors_ND.shape[1], fingerprint="benchmark", hold=hold)  # type: ignore[arg-type]
    index.add([Term(f"t{row}", row) for row in range(len(vectors_ND))], vectors_ND)
    return lambda query_WD: index.search(torch.from_numpy(query_WD)[None], TOP).terms[0].numpy()
