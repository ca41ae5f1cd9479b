"""What becomes of packs when processes are killed, bits flip, inputs lie and disks fill up.

    python -m benchmarks.faults                        # all campaigns: about an hour on two cores
    python -m benchmarks.faults --only flips,fuzz --flips 1000 --inputs 2000
    python -m benchmarks.faults --quick                # a few minutes

Exits with 1 where a campaign finds a failure; inputs that failed are kept in `--work`. Writes
`results/faults.{json,md}`. Linux only: it mounts file systems in a namespace of its own and reads /proc.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.faults_report import CAMPAIGNS, failures_of, report
from benchmarks.results_json import write_results

PACKAGES = ("qwen_term_retrieval", "datasets", "numpy", "pyarrow", "soundfile")
QUICK = {"kills": 6, "flips": 40, "inputs": 100}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs of `qtr pack`, and as many of `qtr append`")
    parser.add_argument("--flips", type=int, default=1000, help="single-bit flips of a pack's files")
    parser.add_argument("--inputs", type=int, default=2000, help="damaged inputs")
    parser.add_argument("--only", default=",".join(CAMPAIGNS), help="campaigns, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("outputs/faults"), help="emptied by each campaign")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--quick", action="store_true", help="few of everything")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    options.campaigns = options.only.split(",")
    unknown = set(options.campaigns) - set(CAMPAIGNS)
    if unknown:
        parser.error(f"no campaign {', '.join(sorted(unknown))}; there are {', '.join(CAMPAIGNS)}")
    return options


def kills(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import faults_kills

    return faults_kills.run(options.work / "kills", num_kills=options.kills, seed=options.seed)


def flips(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import faults_flips

    return faults_flips.run(options.work / "flips", num_flips=options.flips, seed=options.seed)


def fuzz(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import faults_fuzz

    return faults_fuzz.run(options.work / "fuzz", num_inputs=options.inputs, seed=options.seed)


def environment(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import faults_environment

    return faults_environment.run(options.work / "environment")


RUNS: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "kills": kills,
    "flips": flips,
    "fuzz": fuzz,
    "environment": environment,
}


def main() -> None:
    options = arguments()
    path = options.results / "faults.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results = {name: earlier[name] for name in CAMPAIGNS if name in earlier}
    for name in options.campaigns:
        results[name] = {"seed": options.seed, **RUNS[name](options)}
        write_results(path, results, packages=PACKAGES)
        path.with_suffix(".md").write_text(report(results), encoding="utf-8")
    print(report(results))
    sys.exit(bool(sum(failures_of(name, results[name]) for name in options.campaigns)))


if __name__ == "__main__":
    main()
