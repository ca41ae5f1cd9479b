"""How fast clips are read and packed, beside np.memmap, loose files, HF Audio, MDS, WebDataset, Lhotse and LitData.

    python -m benchmarks.data                     # all sections: about half an hour; 10 GB of disk
    python -m benchmarks.data --only reading,cold
    python -m benchmarks.data --quick             # a few minutes: does it run? The numbers mean little.

One set of clips serves every row, in the same run on the same machine; repetitions interleave, the median counts. The
peers are installed into an environment of their own, `--peers-venv`. A section that is run anew replaces its part of
`results/data.json`; `results/data.md` shows them all. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.data import cold, large, loader, packing, reading
from benchmarks.data.clips import BenchmarkClips
from benchmarks.data.report import SECTIONS, report
from benchmarks.sections import kept_sections, parsed, run_sections, section_parser

PACKAGES = ("qwen_term_retrieval", "datasets", "numpy", "pyarrow", "soundfile", "torch")
PEERS_VENV = Path("outputs/peers-venv")
NUM_CLIPS, NUM_ROWS, REPETITIONS = 20_000, 5_000_000, 5
PACKED_SIZES = (1_000, 50_000)
QUICK = {"clips": 1_000, "rows": 50_000, "repetitions": 2}
QUICK_PACKED_SIZES = (200, 1_000)


def arguments() -> argparse.Namespace:
    parser = section_parser(__doc__.splitlines()[0], SECTIONS, Path("outputs/data-benchmark"))
    parser.add_argument("--clips", type=int, default=NUM_CLIPS, help="clips that every row reads")
    parser.add_argument("--rows", type=int, default=NUM_ROWS, help="rows of the large pack")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--peers-venv", type=Path, default=PEERS_VENV, help="made where it is not there")
    parser.add_argument("--no-peers", action="store_true", help="install and measure no other library")
    return parsed(parser, SECTIONS, QUICK)


def peers_of(options: argparse.Namespace) -> dict[str, Any]:
    """The peers' interpreter, and what could not be installed for it."""
    if options.no_peers:
        return {"peers_python": None, "missing": {}}
    missing = reading.make_peers_environment(options.peers_venv, metadata.version("torch").partition("+")[0])
    return {"peers_python": options.peers_venv / "bin" / "python", "missing": missing}


def measure_memory(clips: BenchmarkClips, options: argparse.Namespace) -> dict[str, Any]:
    return packing.run_memory(clips, QUICK_PACKED_SIZES if options.quick else PACKED_SIZES)


MEASURES: dict[str, Callable[[BenchmarkClips, argparse.Namespace], dict[str, Any]]] = {
    "reading": lambda clips, options: reading.run(clips, repetitions=options.repetitions, **peers_of(options)),
    "cold": lambda clips, options: cold.run(clips, repetitions=options.repetitions, **peers_of(options)),
    "loader": lambda clips, options: loader.run(clips, repetitions=options.repetitions),
    "packing": lambda clips, options: packing.run_packing(clips, repetitions=options.repetitions),
    "large": lambda clips, options: large.run(clips, num_rows=options.rows, repetitions=options.repetitions),
    "memory": measure_memory,
}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = arguments()
    clips = BenchmarkClips(options.work / f"clips-{options.clips}")
    clips.make(options.clips)
    path = options.results / "data.json"
    runs = {section: partial(MEASURES[section], clips, options) for section in options.sections}
    settings = {"clips": options.clips, "repetitions": options.repetitions}
    run_sections(path, kept_sections(path, settings, SECTIONS), runs, report, packages=PACKAGES)


if __name__ == "__main__":
    main()
