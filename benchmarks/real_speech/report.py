"""Table, targets, JSON and picture of the real-speech benchmark, from the ranks that its stages left.

Recall intervals are 95 % bootstrap intervals over clips; differences between systems are paired on the same clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.markdown import table
from benchmarks.real_speech.judged_sets import TestSet
from benchmarks.real_speech.term_banks import HARD
from benchmarks.results_json import write_results
from qwen_term_retrieval.evaluation.ranking import bootstrap_interval, recall_at_k

OURS = "ours"
CUTOFFS = (1, 5, 10)
PICTURED = (1, 10)
TARGET_TIME_RATIO = 15
COMPARED_BANK = "+10k"
_LABELS = {
    "ours": "ours",
    "windows": "ours, first stage alone",
    "first sounds": "ours, proposed by sounds",
    "first both": "ours, proposed by windows and sounds",
    "fuzzy": "Whisper-base → spelling",
    "IPA": "Whisper-base → IPA",
    "MiniLM": "Whisper-base → MiniLM",
}
_PACKAGES = ("torch", "transformers", "rapidfuzz", "espeakng-loader", "numpy")


def write_report(
    folder: Path,
    test_set: TestSet,
    *,
    systems: Mapping[str, Mapping[str, Any]],
    timing: Mapping[str, Any],
    training_texts: Mapping[str, int],
    is_short: NDArray[np.bool_],
    has_homophone: Mapping[str, NDArray[np.bool_]],
    bank_sizes: Mapping[str, int],
) -> str:
    """Write `real_speech_<test set>.json`, `.md` and `.png` into `folder`; return the Markdown.

    `systems[name]["ranks"][bank]` are ranks of the clips, in the order of `is_short`; `has_homophone[bank]` says of
    each clip whether another term of the bank sounds just like its own; `timing` is the timing stage's result.
    """
    ranks = {name: {bank: np.array(row) for bank, row in kept["ranks"].items()} for name, kept in systems.items()}
    short = _select(ranks, is_short)
    short_recalls, all_recalls = recall_table(short), recall_table(ranks)
    seconds = timing["seconds"]
    homophones = {
        bank: {
            "clips": int((has[is_short]).sum()),
            "our R@1 without them": recall_at_k(ranks["ours"][bank][is_short & ~has], 1),
        }
        for bank, has in has_homophone.items()
    }
    targets = judge_targets(short, seconds, test_set.target_recall_at_10)
    name = f"real_speech_{test_set.name}"
    results = {
        "test_set": {"name": test_set.name, "speakers": test_set.speakers},
        "clips": {"at most four words": int(is_short.sum()), "all": len(is_short)},
        "bank_sizes": dict(bank_sizes),
        "training_texts": dict(training_texts),
        "recall, clips of at most four words": short_recalls,
        "recall, all clips": all_recalls,
        "edit_measures": {name: kept["measures"] for name, kept in systems.items() if "measures" in kept},
        "homophones, clips of at most four words": homophones,
        "timing": dict(timing),
        "targets": targets,
    }
    if "believed" in systems[OURS]:
        results["at the model's threshold and above, clips of at most four words"] = systems[OURS]["believed"]
    write_results(folder / f"{name}.json", results, packages=_PACKAGES)
    markdown = "\n\n".join(
        [
            f"**{test_set.name}: {test_set.speakers}**",
            f"**Clips of at most four words (n = {int(is_short.sum())})**",
            markdown_table(short_recalls, bank_sizes, seconds),
            _homophone_line(homophones),
            f"**All clips (n = {len(is_short)})**",
            markdown_table(all_recalls, bank_sizes, None),
            "\n".join(f"- {'met' if target['met'] else '**NOT met**'}: {target['text']}" for target in targets),
            _chosen_measures(systems),
        ]
    )
    (folder / f"{name}.md").write_text(markdown + "\n", encoding="utf-8")
    draw_recall_against_bank_size(folder / f"{name}.png", short_recalls, bank_sizes, title=test_set.speakers)
    return markdown


def _homophone_line(homophones: Mapping[str, Mapping[str, float]]) -> str:
    parts = [f"{bank} {kept['clips']} ({kept['our R@1 without them']:.3f})" for bank, kept in homophones.items()]
    return (
        "Clips with an exact homophone in the bank, which count as wrong for us, and our Recall@1 without them: "
        + ", ".join(parts)
        + "."
    )


def _select(ranks: Mapping[str, Mapping[str, NDArray]], chosen: NDArray[np.bool_]) -> dict[str, dict[str, NDArray]]:
    return {name: {bank: row[chosen] for bank, row in banks.items()} for name, banks in ranks.items()}


def recall_table(ranks: Mapping[str, Mapping[str, NDArray[np.int64]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """system → bank → "R@k" → {"value", "low", "high"}."""
    return {
        name: {bank: {f"R@{k}": _recall_with_interval(row, k) for k in CUTOFFS} for bank, row in banks.items()}
        for name, banks in ranks.items()
    }


def _recall_with_interval(ranks: NDArray[np.int64], k: int) -> dict[str, float]:
    low, high = bootstrap_interval(ranks <= k)
    return {"value": recall_at_k(ranks, k), "low": low, "high": high}


def best_baseline(ranks: Mapping[str, Mapping[str, NDArray[np.int64]]]) -> str:
    """The baseline with the highest Recall@10 at `COMPARED_BANK`, Recall@1 deciding between equals."""
    baselines = [name for name in ranks if name != OURS]
    return max(baselines, key=lambda name: [recall_at_k(ranks[name][COMPARED_BANK], k) for k in (10, 1)])


def judge_targets(
    ranks: Mapping[str, Mapping[str, NDArray[np.int64]]],
    seconds: Mapping[str, Mapping[str, float]],
    target_recall_at_10: Mapping[str, float],
) -> list[dict[str, Any]]:
    targets = []
    for bank, floor in target_recall_at_10.items():
        recall = recall_at_k(ranks[OURS][bank], 10)
        targets.append({"text": f"Recall@10, bank {bank}: {recall:.3f} (target ≥ {floor})", "met": recall >= floor})

    rival = best_baseline(ranks)
    found = {name: ranks[name][COMPARED_BANK] <= 10 for name in (OURS, rival)}
    difference = float(found[OURS].mean() - found[rival].mean())
    low, high = bootstrap_interval(found[OURS].astype(int) - found[rival].astype(int))
    targets.append(
        {
            "text": f"Recall@10 at {COMPARED_BANK} above the best baseline ({_LABELS[rival]}): "
            f"{found[OURS].mean():.3f} against {found[rival].mean():.3f}, "
            f"difference {difference:+.3f} [{low:+.3f}, {high:+.3f}]",
            "met": difference > 0,
        }
    )
    ratio = seconds[rival]["median"] / seconds[OURS]["median"]
    targets.append(
        {
            "text": f"at most 1/{TARGET_TIME_RATIO} of its time per clip: {seconds[OURS]['median']:.3f} s "
            f"against {seconds[rival]['median']:.3f} s, 1/{ratio:.1f}",
            "met": ratio >= TARGET_TIME_RATIO,
        }
    )
    return targets


def markdown_table(
    recalls: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]],
    bank_sizes: Mapping[str, int],
    seconds: Mapping[str, Mapping[str, float]] | None,
) -> str:
    """A row for each system and cutoff, a column for each bank; seconds a clip (median) and their ratio to ours."""
    banks = [f"{bank} ({size:,})" for bank, size in bank_sizes.items()]
    head = ["system", "", *banks, *(["s/clip", "× ours"] if seconds else [])]
    lines = []
    for name, by_bank in recalls.items():
        for k in CUTOFFS:
            cells = [_cell(by_bank[bank][f"R@{k}"]) for bank in bank_sizes]
            if seconds:
                median = seconds[name]["median"]
                times = [f"{median:.3f}", f"{median / seconds[OURS]['median']:.1f}"]
                cells += times if k == CUTOFFS[0] else ["", ""]
            lines.append([_LABELS[name] if k == CUTOFFS[0] else "", f"R@{k}", *cells])
    return table(head, lines).rstrip("\n")


def _cell(recall: Mapping[str, float]) -> str:
    return f"{recall['value']:.3f} [{recall['low']:.2f}, {recall['high']:.2f}]"


def _chosen_measures(systems: Mapping[str, Mapping[str, Any]]) -> str:
    chosen = [f"{_LABELS[name]}: {kept['measure']}" for name, kept in systems.items() if "measure" in kept]
    return (
        f"The measure of each baseline is the best of those tried on these very clips ({'; '.join(chosen)}). "
        "Brackets: 95 % bootstrap intervals over clips; they say nothing of other voices."
    )


def draw_recall_against_bank_size(
    path: Path,
    recalls: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]],
    bank_sizes: Mapping[str, int],
    *,
    title: str,
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    banks = [name for name in bank_sizes if name != HARD]
    sizes = np.array([bank_sizes[bank] for bank in banks])
    figure, panels = plt.subplots(1, len(PICTURED), figsize=(9, 3.8), sharey=True, layout="constrained")
    for k, panel in zip(PICTURED, panels, strict=True):
        # Each system stands a little beside the last, so that error bars do not cover one another.
        for shift, (name, by_bank) in zip(np.geomspace(0.94, 1.06, len(recalls)), recalls.items(), strict=True):
            cells = [by_bank[bank][f"R@{k}"] for bank in banks]
            values = np.array([cell["value"] for cell in cells])
            spread = np.array([[cell["value"] - cell["low"], cell["high"] - cell["value"]] for cell in cells]).T
            style = {"linewidth": 2.4, "zorder": 3} if name == OURS else {"linewidth": 1.2}
            panel.errorbar(sizes * shift, values, spread, marker="o", capsize=3, label=_LABELS[name], **style)
        panel.set(xscale="log", xlabel="terms in the bank", title=f"Recall@{k}")
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("share of clips")
    panels[0].legend(loc="lower left", fontsize=8)
    figure.suptitle(f"Real speech, {title}, at most four words: recall against bank size (95 % intervals)", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)
