"""Numbers for people: tables of an evaluation, rows of a model card, and a picture of how recall grows with k."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from qwen_term_retrieval.evaluation.ranked_pairs import RECALL_AT
from qwen_term_retrieval.evaluation.training_curves import BLUE, GREEN, ORANGE

MAIN_METRIC = f"recall@{RECALL_AT[0]}"
GROUPS = {"": "all", "_seen": "seen", "_unseen": "unseen"}
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "linewidth": 3},
    {"color": ORANGE, "linewidth": 1.5},
    {"color": GREEN, "linewidth": 1.5, "linestyle": "--"},
)
_RECALL = re.compile(r"recall@(\d+)$")


def recall_table(metrics: Mapping[str, float], prefix: str = "") -> str:
    """Recall@k and MRR of all, seen and unseen terms, in Markdown.

    Args:
        metrics: of `evaluate_vectors`, `RetrievalEvaluator` or the trainer.
        prefix: what stands before the names there: "eval" for `eval_recall@10`.

    >>> print(recall_table({"eval_recall@1": 0.5, "eval_mrr": 0.625, "eval_pairs": 8}, "eval"))
    | terms   |   pairs |   R@1 |   MRR |
    |---------|---------|-------|-------|
    | all     |       8 | 0.500 | 0.625 |
    """
    values = _without_prefix(metrics, prefix)
    ks = sorted(int(found[1]) for name in values if (found := _RECALL.match(name)))
    rows = []
    for suffix, group in GROUPS.items():
        if any(f"recall@{k}{suffix}" in values for k in ks):
            recalls = [values.get(f"recall@{k}{suffix}") for k in ks]
            rows.append([group, int(values.get(f"pairs{suffix}", 0)), *recalls, values.get(f"mrr{suffix}")])
    return markdown_table(["terms", "pairs", *(f"R@{k}" for k in ks), "MRR"], rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, decimals: str = ".3f") -> str:
    """A table in Markdown that also reads well on a terminal: numbers to the right, None as a dash."""
    return tabulate(rows, header, tablefmt="github", floatfmt=decimals, missingval="–")


def threshold_line(metrics: Mapping[str, float], prefix: str = "") -> str:
    """One line on what the threshold does; empty where none was evaluated."""
    values = _without_prefix(metrics, prefix)
    if "threshold" not in values:
        return ""
    names = {
        "precision": "precision",
        "recall": "recall",
        "f1": "F1",
        "false_alarms_per_minute": "false alarms a minute",
    }
    parts = [f"{label} {values[name]:.3f}" for name, label in names.items() if name in values]
    return f"at threshold {values['threshold']:.3f}: " + ", ".join(parts)


def plot_recall(metrics: Mapping[str, float], path: str | Path, *, prefix: str = "", title: str = "") -> Path:
    """Draw Recall@k over k, for all, seen and unseen terms, with 95 % intervals where there are any, as a PNG.

    Raises:
        ImportError: matplotlib is missing (extra `report`).
        ValueError: no recall among the metrics.
    """
    from matplotlib.figure import Figure

    values = _without_prefix(metrics, prefix)
    ks = sorted(int(found[1]) for name in values if (found := _RECALL.match(name)))
    if not ks:
        raise ValueError(f"no {prefix and prefix + '_'}recall@k among {sorted(metrics)}")
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    # Lines that lie on one another: the wider ones are drawn first, those on top are dashed.
    for (suffix, group), style in zip(GROUPS.items(), _STYLES, strict=True):
        points = [(k, values[f"recall@{k}{suffix}"]) for k in ks if f"recall@{k}{suffix}" in values]
        if not points:
            continue
        (line,) = axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=group, **style)
        bounds = [(k, values.get(f"recall@{k}{suffix}_low"), values.get(f"recall@{k}{suffix}_high")) for k, _ in points]
        if all(low is not None and high is not None for _, low, high in bounds):
            x, low, high = zip(*bounds, strict=True)
            axes.fill_between(x, low, high, alpha=0.12, color=line.get_color(), linewidth=0)
    axes.set(xlabel="k", ylabel="Recall@k", xticks=ks, ylim=(0, 1.02), title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _without_prefix(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    start = f"{prefix}_" if prefix else ""
    return {name.removeprefix(start): value for name, value in metrics.items() if name.startswith(start)}


def recall_rows(metrics: dict[str, float], prefix: str, split: str) -> list[dict[str, Any]]:
    """Rows of the card's recall table from metrics such as `eval_recall@10` and `eval_recall@10_unseen`."""
    names = [*(f"recall@{k}" for k in RECALL_AT), "mrr"]
    return [
        {"split": split, "terms": group, "pairs": int(metrics[f"{prefix}_pairs{suffix}"])}
        | {name: metrics[f"{prefix}_{name}{suffix}"] for name in names}
        for suffix, group in GROUPS.items()
        if f"{prefix}_{MAIN_METRIC}{suffix}" in metrics
    ]


def threshold_rows(metrics: dict[str, float], prefix: str, split: str) -> list[dict[str, Any]]:
    """A row of the card's threshold table from metrics such as `test_precision`; none where no threshold was tried."""
    names = ("precision", "recall", "f1", "false_alarms_per_minute")
    if f"{prefix}_precision" not in metrics:
        return []
    return [{"split": split} | {name: metrics.get(f"{prefix}_{name}") for name in names}]
