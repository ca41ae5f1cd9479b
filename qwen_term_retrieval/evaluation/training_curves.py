"""One picture of a run: how recall grew and the loss fell, and which checkpoint was the best."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_term_retrieval.storage.atomic import atomic_file

# Okabe and Ito's colours, which the colour-blind tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
_RECALL = re.compile(r"recall@(\d+)$")
_SUFFIXES = {"": ("", "-"), "_unseen": (", unseen terms", "--")}


def draw_training_curves(
    log_history: Sequence[Mapping[str, Any]], path: str | Path, *, prefix: str = "eval", best_step: int | None = None
) -> None:
    """Draw recall and MRR, all and unseen terms, beside training loss and learning rate, over steps, as a PNG.

    Args:
        log_history: of `trainer_state.json`, or the records of `recall_history.jsonl`, which have no loss. Of two
            evaluations at one step the first counts: at the end of a run the best checkpoint is evaluated again.
        path: takes its name only when the picture is whole.
        prefix: what stands before the names of the evaluation's metrics.
        best_step: is marked.

    Raises:
        ImportError: matplotlib is missing (extra `report`).
        ValueError: there is no recall in the history.
    """
    from matplotlib.figure import Figure

    names = {name for line in log_history for name in line}
    ks = sorted(int(found[1]) for name in names if (found := _RECALL.fullmatch(name.removeprefix(f"{prefix}_"))))
    if not ks:
        raise ValueError(f"no {prefix}_recall@k in a history of {len(log_history)} lines")
    # A fixed layout: fitting one takes longer than drawing, and a run draws after every evaluation.
    figure = Figure(figsize=(8, 3.8))
    figure.subplots_adjust(left=0.075, right=0.92, bottom=0.25, top=0.92, wspace=0.25)
    recall, training = figure.subplots(1, 2, sharex=True)
    _draw_recall(recall, log_history, prefix, sorted({ks[0], ks[-1]}))
    _draw_training(training, log_history)
    for axes in (recall, training):
        axes.set(xlabel="optimizer step", xlim=(0, None))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if best_step is not None:
            axes.axvline(best_step, color=GREY, linewidth=1, linestyle=":", zorder=1, label="best checkpoint")
    figure.legend(*recall.get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=8, frameon=False)
    with atomic_file(Path(path), durable=False) as file:
        figure.savefig(file, format="png", dpi=150)


def _draw_recall(axes: Any, log_history: Sequence[Mapping[str, Any]], prefix: str, ks: Sequence[int]) -> None:
    curves = {f"recall@{k}": (f"Recall@{k}", colour) for k, colour in zip(reversed(ks), (BLUE, ORANGE), strict=False)}
    for metric, (label, colour) in {**curves, "mrr": ("MRR", GREEN)}.items():
        for suffix, (group, line) in _SUFFIXES.items():
            steps, values = _points(log_history, f"{prefix}_{metric}{suffix}")
            if steps:
                marker = "o" if len(steps) < 30 else None
                style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 3, "linewidth": 1.5}
                axes.plot(steps, values, label=label + group, **style)
    axes.set(ylabel="recall and MRR", ylim=(0, 1.02), title="Retrieval on the evaluation split")


def _draw_training(axes: Any, log_history: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    steps, losses = _points(log_history, "loss")
    axes.set(ylabel="loss", title="Training")
    axes.plot(steps, losses, color=BLUE, linewidth=1.5)
    if steps and min(losses) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    steps, rates = _points(log_history, "learning_rate")
    if steps:
        beside = axes.twinx()
        beside.plot(steps, rates, color=GREY, linewidth=1, linestyle="--")
        beside.set_ylabel("learning rate (dashed)", color=GREY)
        beside.tick_params(axis="y", colors=GREY)
        beside.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        beside.set_ylim(bottom=0)
        beside.spines[["top", "left"]].set_visible(False)


def _points(log_history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    values: dict[int, float] = {}
    for line in log_history:
        if name in line:
            values.setdefault(line["step"], line[name])
    return list(values), list(values.values())
