"""Tables and JSON of a set in which terms stand inside longer speech."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.markdown import table
from benchmarks.results_json import write_results

_PACKAGES = ("torch", "transformers", "rapidfuzz", "espeakng-loader", "numpy")
_LABELS = {
    "spotting ours": "ours",
    "spotting fuzzy": "Whisper-base → spelling of runs of words",
    "spotting IPA": "Whisper-base → IPA of runs of words",
}
HEAD = (
    "system", "bank", "R@10", "AP", "best F1 (P/R)", "R at P ≥ .9", "R at 1 false alarm a minute", "R at 10 an hour",
    "P / R / F1 at the stored threshold", "span error, s",
)  # fmt: skip


def write_report(
    folder: Path,
    name: str,
    *,
    systems: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Mapping[str, object]],
    bank_sizes: Mapping[str, int],
) -> str:
    """Write `real_speech_<name>.json` and `.md` into `folder`; return the Markdown.

    `systems[system]["numbers"][set][bank]` are numbers of `judging.numbers`; `facts[set]` those of
    `SearchedSet.facts`.
    """
    found = {_LABELS[system]: dict(kept) for system, kept in systems.items()}
    results = {"test_set": name, "sets": dict(facts), "bank_sizes": dict(bank_sizes), "systems": found}
    write_results(folder / f"real_speech_{name}.json", results, packages=_PACKAGES)
    parts = [f"**{name}**"]
    for each, about in facts.items():
        parts += [_heading(about), table(HEAD, _rows(found, each, bank_sizes)).rstrip("\n")]
    markdown = "\n\n".join([*parts, _chosen(found)])
    (folder / f"real_speech_{name}.md").write_text(markdown + "\n", encoding="utf-8")
    return markdown


def _heading(about: Mapping[str, object]) -> str:
    return (
        f"**{about['title']}**: n = {about['terms said']} terms said in {about['clips with a term']} of "
        f"{about['clips']} clips, {about['recordings']} recordings, {about['minutes']} min, speakers: "
        f"{about['speakers']}"
    )


def _rows(found: Mapping[str, Mapping[str, Any]], each: str, bank_sizes: Mapping[str, int]) -> list[list[str]]:
    return [
        [system if row == 0 else "", f"{bank} ({size:,})", *_cells(kept["numbers"][each][bank])]
        for system, kept in found.items()
        for row, (bank, size) in enumerate(bank_sizes.items())
    ]


def _cells(metrics: Mapping[str, float]) -> list[str]:
    stored = [f"{metrics[key]:.2f}" for key in ("precision", "recall", "f1") if "threshold" in metrics]
    return [
        f"{metrics['recall@10']:.3f} [{metrics['recall@10_low']:.2f}, {metrics['recall@10_high']:.2f}]",
        f"{metrics['average_precision']:.3f}",
        f"{metrics['best_f1']:.3f} ({metrics['best_f1_precision']:.2f}/{metrics['best_f1_recall']:.2f})",
        f"{metrics['recall@precision_0.9']:.3f}",
        f"{metrics['recall@1_false_alarm_per_minute']:.3f}",
        f"{metrics['recall@10_false_alarms_per_hour']:.3f}",
        " / ".join(stored) or "–",
        f"{metrics['span_error']:.3f} ({metrics['spans']})" if "span_error" in metrics else "–",
    ]


def _chosen(found: Mapping[str, Mapping[str, Any]]) -> str:
    chosen = [f"{system}: {kept['measure']}" for system, kept in found.items() if "measure" in kept]
    return (
        f"A baseline's measure is the best of those tried on these very clips ({'; '.join(chosen) or 'none was run'}); "
        "best F1 is that of the best threshold for these very answers, of any system. Brackets: 95 % bootstrap "
        "intervals over terms said; they say nothing of other voices. A transcript search has no threshold of its own "
        "and no times inside a clip; it is given every clip at its true borders."
    )
