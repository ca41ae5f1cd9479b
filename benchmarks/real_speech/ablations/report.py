"""The table of the ablation, from the ranks that its runs left: recall by variant, and what each adds to the first.

A number is the mean over seeds, with the lowest and highest seed where there are several. A difference is paired: for
each clip the share of seeds that found it, less that of the first variant. Its 95 % interval is a bootstrap over clips,
so it says what these clips can tell; the spread of seeds stands beside it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.markdown import table
from benchmarks.results_json import RESULTS, write_results
from qwen_term_retrieval.evaluation.ranking import bootstrap_interval

CUTOFFS = (1, 10)
DIFFERENCE_IN = ("volunteers", "+10k", 10)
_PACKAGES = ("torch", "transformers", "peft", "datasets", "numpy", "espeakng-loader")


class Described(Protocol):
    name: str
    what: str


def table_of_runs(
    name: str,
    runs: Path,
    variants: Sequence[Described],
    whole_clip: Described,
    about: Mapping[str, Any],
    results: Path = RESULTS,
) -> str:
    """Write `{name}.json` and `{name}.md` from the JSON files in `runs`; return the Markdown."""
    found = read_runs(runs)
    base = found[variants[0].name]
    found[whole_clip.name] = {seed: {**run, "ranks": run["ranks_whole_clip"]} for seed, run in base.items()}
    rows = [
        summary(variant, found[variant.name], base)
        for variant in (variants[0], whole_clip, *variants[1:])
        if variant.name in found
    ]
    write_results(results / f"{name}.json", {**about, "variants": rows}, packages=_PACKAGES)
    markdown = _markdown(rows, about)
    (results / f"{name}.md").write_text(markdown, encoding="utf-8")
    return markdown


def read_runs(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """variant → seed → result."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found[result["variant"]][result["seed"]] = result
    return dict(found)


def summary(
    variant: Described, runs: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    recall: dict[str, dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    first = next(iter(runs.values()))["ranks"]
    both = sorted(runs.keys() & base.keys())  # a difference is one of the same seeds
    for test, banks in first.items():
        for bank in banks:
            for k in CUTOFFS:
                found_SC = hits(runs, test, bank, k)
                own_C, base_C = (hits(each, test, bank, k, seeds=both).mean(axis=0) for each in (runs, base))
                difference_C = own_C - base_C
                low, high = bootstrap_interval(difference_C)
                recall[test][bank][f"R@{k}"] = {
                    "mean": float(found_SC.mean()),
                    "seeds": [float(value) for value in found_SC.mean(axis=1)],
                    "difference": float(difference_C.mean()),
                    "difference_low": low,
                    "difference_high": high,
                }
    return {
        "variant": variant.name,
        "what": variant.what,
        "seeds": sorted(runs),
        "clips": next(iter(runs.values()))["clips"],
        "train_s": round(float(np.mean([run["train_s"] for run in runs.values()]))),
        "recall": recall,
    }


def hits(
    runs: Mapping[int, Mapping[str, Any]], test: str, bank: str, k: int, seeds: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """(seeds, clips): whether the right term stood among the first `k`."""
    of_seed = [np.array(runs[seed]["ranks"][test][bank]) <= k for seed in seeds or sorted(runs)]
    return np.array(of_seed, dtype=np.float64)


def _markdown(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    tests = rows[0]["recall"]
    columns = [(test, bank) for test, banks in tests.items() for bank in banks]
    test, bank, k = DIFFERENCE_IN
    header = ["variant", *(f"{test} {bank}" for test, bank in columns), f"Δ R@{k} {test} {bank}", "seeds"]
    lines = []
    for row in rows:
        cells = [
            " / ".join(_mean_and_range(row["recall"][test][bank][f"R@{k}"]) for k in CUTOFFS) for test, bank in columns
        ]
        change = row["recall"][test][bank][f"R@{k}"]
        difference = f"{change['difference']:+.3f} [{change['difference_low']:+.3f}, {change['difference_high']:+.3f}]"
        lines.append([f"**{row['variant']}**: {row['what']}", *cells, difference, len(row["seeds"])])
    return f"R@1 / R@10, mean over seeds (lowest–highest). {about['budget']}\n\n{table(header, lines)}"


def _mean_and_range(recall: Mapping[str, Any]) -> str:
    seeds = recall["seeds"]
    spread = f" ({min(seeds):.2f}–{max(seeds):.2f})" if len(seeds) > 1 else ""
    return f"{recall['mean']:.3f}{spread}"
