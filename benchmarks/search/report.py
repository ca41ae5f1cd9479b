"""The tables of `benchmarks.search`, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import table, thousands


def banks_table(banks: Mapping[str, Any]) -> str:
    lines = [
        [bank, row["way"], f"{row['ms']:.1f}", f"{row['times_numpy']:.2f}×", f"{row['cpu_ms']:.1f}",
         f"{row['times_numpy_cpu']:.2f}×", f"{row['recall']:.4f}"]
        for bank, rows in banks.items()
        for row in rows
    ]  # fmt: skip
    header = ["bank", "way", "ms a clip", "numpy's speed", "CPU ms", "by CPU", "recall of the ten best"]
    return table(header, lines) + "\nMedians over clips; recall against numpy.\n"


def making_table(making: Mapping[str, Any]) -> str:
    return table(
        ["terms", "seconds", "terms a second", "CPU seconds", "MB more at most"],
        [[thousands(making["terms"]), f"{making['seconds']:.0f}", thousands(making["terms_a_second"]),
          f"{making['cpu_seconds']:.0f}", thousands(making["bytes_more_at_most"] / 1e6)]],
    )  # fmt: skip


def values_table(values: Mapping[str, Any]) -> str:
    return table(["what", "value"], [[name.replace("_", " "), f"{value:,.2f}"] for name, value in values.items()])


def clip_table(rows: list[dict[str, Any]]) -> str:
    return table(
        ["dtype", "terms", "samples to ten terms, ms", "of it the search, ms"],
        [[row["dtype"], thousands(row["terms"]), f"{row['whole_ms']:.1f}", f"{row['search_ms']:.1f}"] for row in rows],
    )


SECTIONS = {
    "making": ("Embedding and indexing", making_table),
    "banks": ("One clip in a bank", banks_table),
    "changing": ("Opening, changing, keeping", values_table),
    "writers": ("Eight searchers beside four writers", values_table),
    "clip": ("A clip of three seconds, from samples to ten terms by windows", clip_table),
}


def report(results: Mapping[str, Any]) -> str:
    parts = ["# Search\n\nMade by `python -m benchmarks.search`.\n"]
    for name, (title, make_table) in SECTIONS.items():
        if name in results:
            parts.append(f"\n## {title}\n\n{make_table(results[name])}")
    return "".join(parts)
