"""A benchmark in sections: which of them to run, and one report, in which the others keep the numbers they had.

Used by `benchmarks.data`, `benchmarks.faults` and `benchmarks.training`.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_json import RESULTS, machine, write_results


def section_parser(description: str, sections: Sequence[str], work: Path) -> argparse.ArgumentParser:
    """A parser with `--only`, `--work`, `--results` and `--quick`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", default=",".join(sections), help="sections, separated by commas")
    parser.add_argument("--work", type=Path, default=work, help="what is measured on lies here")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="little of everything: does it run?")
    return parser


def parsed(parser: argparse.ArgumentParser, sections: Sequence[str], quick: Mapping[str, Any]) -> argparse.Namespace:
    """The options, with `sections` as a list, and with `--quick` those of `quick`."""
    options = parser.parse_args()
    if options.quick:
        vars(options).update(quick)
    options.sections = options.only.split(",")
    unknown = set(options.sections) - set(sections)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(sections)}")
    return options


def kept_sections(path: Path, settings: Mapping[str, Any], sections: Iterable[str]) -> dict[str, Any]:
    """The settings, and what an earlier run with the same ones found of any section, `measured` when and on what."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    same = all(earlier.get(name) == value for name, value in settings.items())
    kept = [name for name in sections if same and name in earlier]
    before = {"date": earlier.get("date"), "cpu": earlier.get("machine", {}).get("cpu")}
    measured = {name: earlier.get("measured", {}).get(name, before) for name in kept}
    return {**settings, "measured": measured, **{name: earlier[name] for name in kept}}


def measured_line(results: Mapping[str, Any], section: str) -> str:
    """When and on what a section was measured, in a line of Markdown."""
    about = results.get("measured", {}).get(section, {})
    return f"*{about.get('date')}, {about.get('cpu')}*"


def run_sections(
    path: Path,
    results: dict[str, Any],
    runs: Mapping[str, Callable[[], dict[str, Any]]],
    report: Callable[[dict[str, Any]], str],
    *,
    packages: Sequence[str],
) -> None:
    """Run sections, write `results` to `path` and a report beside it, and print that.

    Args:
        path: JSON file.
        results: what is known before; takes what each section returns.
    """
    for section, run in runs.items():
        results[section] = run()
        results["measured"][section] = {"date": datetime.date.today().isoformat(), "cpu": machine()["cpu"]}
        # After each section, so that nothing is lost if a later one fails.
        write_results(path, results, packages=packages)
        path.with_suffix(".md").write_text(report(results), encoding="utf-8")
    print(report(results))
