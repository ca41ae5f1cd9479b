"""The tables of `benchmarks.faults`, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import table

KILLED = ("pack", "append")
PHASES = ("starting", "parts", "shards", "tables", "pack.json", "published")
OUTCOMES = ("done", "refused", "foreign error", "crash", "hang", "wrong in silence")
FLIP_PROBLEMS = ("missed by verify", "altered audio by row", "altered audio by key", "foreign error", "crash", "hang")
KIND_OF_SUFFIX = {
    ".dat": "shards",
    ".npz": "shard indexes",
    ".parquet": "tables",
    ".arrow": "key index",
    ".json": "pack.json",
}


def kills_table(kills: Mapping[str, Any]) -> str:
    lines = []
    for name in KILLED:
        if name in kills:
            tally = kills[name]
            phases = [tally["phases"].get(phase, 0) for phase in PHASES]
            lines.append([f"`qtr {name}`", tally["kills"], *phases, tally["resumed"], len(tally["failures"])])
    header = ["command", "SIGKILLs", *(f"at {phase}" for phase in PHASES), "resumed to the same bytes", "failures"]
    return table(header, lines) + (
        "\nSeveral kills may fall on one run before it is let through; a kill after publishing leaves nothing to "
        "resume. Half hit the whole process group, half the parent alone, whose workers must then end by themselves.\n"
    )


def flips_table(flips: Mapping[str, Any]) -> str:
    lines = [
        [KIND_OF_SUFFIX[suffix], counts["flips"], *(counts.get(problem, 0) for problem in FLIP_PROBLEMS)]
        for suffix, counts in sorted(flips["by_kind"].items())
    ]
    return table(["bit flipped in", "flips", *FLIP_PROBLEMS], lines) + (
        "\nEach pack is then verified, and read by row and by key with `verify=True`.\n"
    )


def fuzz_table(fuzz: Mapping[str, Any]) -> str:
    lines = [
        [kind, sum(counts.values()), *(counts.get(outcome, 0) for outcome in OUTCOMES)]
        for kind, counts in fuzz["by_kind"].items()
    ]
    total = [sum(line[column] for line in lines) for column in range(1, len(OUTCOMES) + 2)]
    return table(["input", "mutated", "read", *OUTCOMES[1:]], [*lines, ["**all**", *total]]) + (
        "\nRead: as something, with what could not be used reported. Refused: by an error of ours. The rest are "
        "failures.\n"
    )


def environment_table(environment: Mapping[str, Any]) -> str:
    lines = [
        [name, "yes" if result["passed"] else "**no**", result["said"].replace("\n", " ").replace("|", "\\|")]
        for name, result in environment.items()
        if isinstance(result, dict)
    ]
    return table(["fault", "passed", "what the user is told"], lines)


def indexes_table(indexes: Mapping[str, Any]) -> str:
    lines = [["flipped bits", indexes["flips"], indexes["flips"] - len(indexes["missed"]), len(indexes["missed"])]]
    if kills := indexes.get("kills"):
        lines.append(["SIGKILLs of `qtr index`", kills["kills"], kills["resumed"], len(kills["failures"])])
        phases = ", ".join(f"{phase} {number}" for phase, number in kills["phases"].items())
        lines[-1][0] += f" ({phases})"
    return table(["fault", "trials", "found by `qtr verify`, or resumed to the same bytes", "failures"], lines) + (
        "\nSeveral kills may fall on one run before it is let through.\n"
    )


CAMPAIGNS = {
    "kills": ("Killed while packing", kills_table),
    "flips": ("Flipped bits", flips_table),
    "fuzz": ("Damaged inputs", fuzz_table),
    "indexes": ("Indexes of terms, killed while they are made and flipped", indexes_table),
    "environment": ("Disks, folders and neighbours", environment_table),
}


def failures_of(name: str, results: Mapping[str, Any]) -> int:
    """How many trials of a campaign failed."""
    if name == "kills":
        return sum(len(results[command]["failures"]) for command in KILLED if command in results)
    if name == "indexes":
        return len(results["missed"]) + len(results.get("kills", {}).get("failures", ()))
    if name == "environment":
        return sum(not result["passed"] for result in results.values() if isinstance(result, dict))
    return len(results["failures"])


def report(results: Mapping[str, Any]) -> str:
    parts = ["# Faults\n\nMade by `python -m benchmarks.faults`.\n"]
    for name, (title, make_table) in CAMPAIGNS.items():
        if name in results:
            count = failures_of(name, results[name])
            parts.append(
                f"\n## {title}: {count or 'no'} failure{'s' if count != 1 else ''}\n\n{make_table(results[name])}"
            )
    return "".join(parts)
