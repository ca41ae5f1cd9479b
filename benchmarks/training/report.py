"""The tables of `benchmarks.training`, in Markdown: for the screen and for `results/training.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import table

PARTS = {
    "forward": "Forward of 3 s clips, Qwen2-Audio's encoder, against its stock 30 s path",
    "step": "Training step, 3 s clips, LoRA, against sentence-transformers",
    "mel": "Spectrograms on the device, against `WhisperFeatureExtractor` in the collator",
    "data": "Demo recipe: share of the step time spent waiting for data",
    "mining": "Nearest wrong terms: 100,000 clips against 100,000 terms, 256 dimensions, two threads on a CPU",
    "gpu": "Qwen2-Audio's encoder, bf16, LoRA, 256 clips of 3 s a step: MFU",
}
PERCENT = ("data", "gpu")
SECONDS = ("mining",)
# Told elsewhere in the report.
TOLD = {"rows", "profile", "value", "asked_at_least", "asked_below", "met", "judged", "device", "seconds"}


def report(results: Mapping[str, Any]) -> str:
    """The summary, then the rows of every part and the profiles of targets that were missed."""
    lines = [
        [title, *summary(part, found)] for part, title in PARTS.items() for found in results.get(part, {}).values()
    ]
    about = "Made by `python -m benchmarks.training`; medians of interleaved repetitions."
    quick = " **Quick: small sizes, the numbers mean nothing.**" if results.get("quick") else ""
    sections = [
        f"\n## {PARTS[part]}, on {device}\n\n{section(found)}"
        for part in PARTS
        for device, found in results.get(part, {}).items()
        if "not_run" not in found
    ]
    header = ["what", "on", "found", "asked", ""]
    return f"# Training\n\n{about}{quick}\n\n{table(header, lines)}{''.join(sections)}"


def summary(part: str, found: Mapping[str, Any]) -> list[str]:
    if "not_run" in found:
        return ["–", f"not run: {found['not_run']}", "", ""]
    asked = f"< {_shown(part, found['asked_below'])}" if "asked_below" in found else None
    asked = asked or f"≥ {_shown(part, found['asked_at_least'])}"
    return [found["device"], _shown(part, found["value"]), asked, "met" if found["met"] else "**missed**"]


def _shown(part: str, value: float) -> str:
    if part in SECONDS:
        return f"{value:.3g} s"
    return f"{100 * value:.3g} %" if part in PERCENT else f"{value:.3g}×"


def section(found: Mapping[str, Any]) -> str:
    """What was measured of one part on one device."""
    text = f"Judged: {found['judged']}.\n\n"
    if "rows" in found:
        text += rows_table(found["rows"]) + "\n"
    text += "; ".join(
        f"{name.replace('_', ' ')}: {_number(value)}" for name, value in found.items() if name not in TOLD
    )
    return text + (
        f"\n\nMissed. Profile of ours:\n\n```\n{found['profile'].rstrip()}\n```\n" if "profile" in found else "\n"
    )


def rows_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, row in rows.items():
        counted = "flops" in row
        lines.append(
            [
                name,
                row["does"],
                f"{row['median_seconds']:.3g}",
                f"{row['flops'] / 1e9:,.3g}" if counted else "",
                f"{row['floor_seconds']:.3g}" if counted else "",
                f"{row['of_peak']:.0%}" if counted else "",
                f"{row['ours_is_faster_by']:.1f}×" if "ours_is_faster_by" in row else "",
            ]
        )
    header = ["row", "what it does", "seconds", "GFLOP counted", "floor, seconds", "of the peak", "ours is faster by"]
    return table(header, lines)


def _number(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_number(each)}" for name, each in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
