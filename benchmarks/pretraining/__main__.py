"""Audio pre-training beside NeMo 3.0.0, from one run.

python -m benchmarks.pretraining                       # makes outputs/nemo-venv on first use, 400 MB
python -m benchmarks.pretraining --only speed --quick
python -m benchmarks.pretraining --only gpu            # a few minutes on a GPU, without NeMo
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.pretraining.nemo_venv import has_nemo, run_with_nemo
from benchmarks.sections import kept_sections, parsed, run_sections, section_parser

SECTIONS = ("equality", "masks", "speed", "waiting", "gpu")
WITH_NEMO = ("equality", "speed")
QUICK = {"clips": 4, "draws": 500, "rounds": 1, "batch": 4, "steps": 6}


def main() -> None:
    parser = section_parser(__doc__ or "", SECTIONS, Path("outputs/benchmark-pretraining"))
    parser.add_argument("--clips", type=int, default=48, help="clips of section equality")
    parser.add_argument("--draws", type=int, default=20_000, help="masks of each length")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="clips of 15 s")
    parser.add_argument("--steps", type=int, default=30, help="training steps of sections waiting and gpu")
    options = parsed(parser, SECTIONS, QUICK)
    if not has_nemo() and {*WITH_NEMO} & {*options.sections}:
        run_with_nemo("benchmarks.pretraining", *sys.argv[1:])
        return
    # Here, so that what only makes the environment needs nothing of it.
    from benchmarks.pretraining.equality import measure_equality, measure_masks
    from benchmarks.pretraining.gpu import measure_gpu
    from benchmarks.pretraining.speed import measure_speed, measure_waiting

    runs = {
        "equality": lambda: measure_equality(options.clips),
        "masks": lambda: measure_masks(options.draws),
        "speed": lambda: measure_speed(options.rounds, options.batch),
        "waiting": lambda: measure_waiting(options.steps),
        "gpu": lambda: measure_gpu(options.steps),
    }
    path = options.results / "audio_pretraining.json"
    packages = ("torch", "transformers", *(("nemo_toolkit",) if has_nemo() else ()))
    chosen = {name: runs[name] for name in options.sections}
    run_sections(path, kept_sections(path, {}, SECTIONS), chosen, report, packages=packages)


def report(results: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = ["# Audio pre-training", ""]
    for section in SECTIONS:
        if section in results:
            lines += [
                f"## {section}",
                "",
                *(f"- {name}: {_shown(each)}" for name, each in results[section].items()),
                "",
            ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
