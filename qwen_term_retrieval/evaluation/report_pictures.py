"""The pictures of an evaluation: recall against bank size, precision against recall, and how far scores lie apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qwen_term_retrieval.evaluation.training_curves import BLUE, GREEN, GREY, ORANGE
from qwen_term_retrieval.retrieval.calibration import PrecisionRecallCurve


def draw_recall_by_bank(metrics_by_bank: Mapping[int, Mapping[str, float]], path: Path, *, ks: Sequence[int]) -> None:
    """Recall@k over the number of terms searched, with 95 % intervals over pairs."""
    with _picture(path, "Recall against bank size") as axes:
        sizes = list(metrics_by_bank)
        lowest = min(metrics[f"recall@{k}_low"] for metrics in metrics_by_bank.values() for k in ks)
        for k, colour in zip(sorted(ks, reverse=True), (BLUE, GREEN, ORANGE), strict=False):
            columns = [[metrics_by_bank[size][f"recall@{k}{end}"] for size in sizes] for end in ("", "_low", "_high")]
            axes.plot(sizes, columns[0], marker="o", markersize=4, color=colour, label=f"Recall@{k}")
            axes.fill_between(sizes, columns[1], columns[2], color=colour, alpha=0.15, linewidth=0)
        axes.set(xscale="log", xlabel="terms in the bank", ylabel="share of the terms said")
        axes.set_ylim(max(0, math.floor(lowest * 10 - 0.5) / 10), 1.01)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.legend(frameon=False, loc="lower left")


def draw_precision_recall(curve: PrecisionRecallCurve, path: Path, *, threshold: float | None) -> None:
    """Precision over recall for every threshold; the one in use is marked."""
    with _picture(path, "Precision against recall, all thresholds") as axes:
        axes.plot(curve.recall, curve.precision, color=BLUE, linewidth=1.8)
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
        num_accepted = 0 if threshold is None else int((curve.thresholds >= threshold).sum())
        if num_accepted:
            place = num_accepted - 1
            axes.plot(
                curve.recall[place], curve.precision[place], "o", color=ORANGE, label=f"threshold {threshold:.3f}"
            )
            axes.legend(frameon=False, loc="lower left")


def draw_scores(
    groups: Mapping[str, ArrayLike], path: Path, *, threshold: float | None, called: str = "score (cosine)"
) -> None:
    """Histograms of scores, each group's as shares of itself: where they lie apart a threshold divides them.

    `called`: what they are.
    """
    with _picture(path, "Scores of right and of wrong terms") as axes:
        known = {name: np.asarray(scores, float) for name, scores in groups.items() if len(np.asarray(scores))}
        joined = np.concatenate(list(known.values()))
        bins = np.linspace(joined.min(), max(joined.max(), joined.min() + 1e-3), 41)
        for (name, scores), colour in zip(known.items(), (BLUE, ORANGE, GREEN), strict=False):
            shares = np.full(len(scores), 1 / len(scores))
            axes.hist(scores, bins, weights=shares, color=colour, alpha=0.25)
            axes.hist(scores, bins, weights=shares, color=colour, histtype="step", label=f"{name} ({len(scores)})")
        if threshold is not None:
            axes.axvline(threshold, color=GREY, linestyle="--", linewidth=1, label=f"threshold {threshold:.3f}")
        axes.set(xlabel=called, ylabel="share of the group")
        axes.figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)


@contextmanager
def _picture(path: Path, title: str) -> Iterator[Any]:
    """Axes to draw on; what is on them when the block ends is the PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    yield axes
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
