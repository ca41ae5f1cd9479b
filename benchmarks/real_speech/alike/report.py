"""Tables and JSON of pairs of a clip and a term."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.markdown import table
from benchmarks.results_json import write_results

_PACKAGES = ("torch", "transformers", "rapidfuzz", "espeakng-loader", "numpy")
_LABELS = {
    "alike ours": "ours, cosine",
    "alike ours by sounds": "ours, sounds alone",
    "alike ours verified": "ours, verifier",
    "alike fuzzy": "Whisper-base → spelling",
    "alike IPA": "Whisper-base → IPA",
}
HEAD = ("system", "split", "positives", "negatives", "AUC", "EER")


def write_report(
    folder: Path, name: str, *, systems: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Mapping[str, object]]
) -> str:
    """Write `real_speech_<name>.json` and `.md` into `folder`; return the Markdown.

    `systems[system]["numbers"][set][split]` are numbers of `pairs.split_numbers`; `facts[set]` says what the set is.
    """
    found = {_LABELS[system]: dict(kept) for system, kept in systems.items()}
    results = {"test_set": name, "sets": dict(facts), "systems": found}
    write_results(folder / f"real_speech_{name}.json", results, packages=_PACKAGES)
    parts = [f"**{name}**"]
    for each, about in facts.items():
        heading = f"**{each}: {about['speakers']}** (n = {about['clips']} clips, {about['pairs']} pairs)"
        parts += [heading, table(HEAD, _rows(found, each)).rstrip("\n")]
    chosen = [f"{system}: {kept['measure']}" for system, kept in found.items() if "measure" in kept]
    parts.append(
        "Positives are the same in both splits. A baseline's measure is the one with the highest AUC on these very "
        f"hard pairs, over all sets ({'; '.join(chosen) or 'none was run'})."
    )
    markdown = "\n\n".join(parts)
    (folder / f"real_speech_{name}.md").write_text(markdown + "\n", encoding="utf-8")
    return markdown


def _rows(found: Mapping[str, Mapping[str, Any]], each: str) -> list[list[str]]:
    rows = []
    for system, kept in found.items():
        for place, (split, cell) in enumerate(kept["numbers"][each].items()):
            counts = [f"{cell['positives']:,}", f"{cell['negatives']:,}"]
            rows.append([system if place == 0 else "", split, *counts, f"{cell['auc']:.4f}", f"{cell['eer']:.1%}"])
    return rows
