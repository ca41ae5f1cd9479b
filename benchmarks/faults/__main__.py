"""What becomes of packs and indexes when processes are killed, bits flip, inputs lie and disks fill up.

    python -m benchmarks.faults                        # all campaigns: about an hour on two cores
    python -m benchmarks.faults --only flips,fuzz --flips 1000 --inputs 2000
    python -m benchmarks.faults --only indexes --model MODEL
    python -m benchmarks.faults --quick                # a few minutes

Exits with 1 where a campaign finds a failure; inputs that failed are kept in `--work`, where each campaign empties its
own folder. Writes `results/faults.{json,md}`. Linux only: it mounts file systems in a namespace of its own and reads
/proc.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults import environment, flips, fuzz, indexes, kills
from benchmarks.faults.report import CAMPAIGNS, failures_of, report
from benchmarks.sections import kept_sections, parsed, run_sections, section_parser

PACKAGES = ("qwen_term_retrieval", "datasets", "numpy", "pyarrow", "soundfile")
QUICK = {"kills": 6, "flips": 40, "inputs": 100}


def arguments() -> argparse.Namespace:
    parser = section_parser(__doc__.splitlines()[0], CAMPAIGNS, Path("outputs/faults"))
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs of `qtr pack`, and as many of `qtr append`")
    parser.add_argument("--flips", type=int, default=1000, help="single-bit flips of a pack's files")
    parser.add_argument("--inputs", type=int, default=2000, help="damaged inputs")
    parser.add_argument("--model", help="of the `qtr index` that is killed; without one, no index is")
    parser.add_argument("--seed", type=int, default=0)
    return parsed(parser, CAMPAIGNS, QUICK)


RUNS: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "kills": lambda options: kills.run(options.work / "kills", num_kills=options.kills, seed=options.seed),
    "flips": lambda options: flips.run(options.work / "flips", num_flips=options.flips, seed=options.seed),
    "fuzz": lambda options: fuzz.run(options.work / "fuzz", num_inputs=options.inputs, seed=options.seed),
    "indexes": lambda options: indexes.run(
        options.work / "indexes",
        model=options.model,
        num_kills=options.kills,
        num_flips=options.flips,
        seed=options.seed,
    ),
    "environment": lambda options: environment.run(options.work / "environment"),
}


def main() -> None:
    options = arguments()
    path = options.results / "faults.json"
    results = kept_sections(path, {}, CAMPAIGNS)
    runs = {name: partial(run_campaign, name, options) for name in options.sections}
    run_sections(path, results, runs, report, packages=PACKAGES)
    sys.exit(bool(sum(failures_of(name, results[name]) for name in options.sections)))


def run_campaign(name: str, options: argparse.Namespace) -> dict[str, Any]:
    return {"seed": options.seed, **RUNS[name](options)}


if __name__ == "__main__":
    main()
