"""How fast training is, beside the stock encoders, the stock feature extractor and sentence-transformers.

    python -m benchmarks.training                        # all parts, some minutes; on a GPU too where there is one
    python -m benchmarks.training --part forward mel     # the others keep their numbers in results/training.json
    python -m benchmarks.training --quick                # does it run? Small sizes; the numbers mean nothing.

Ourselves and the peer take turns in one process, on the same clips and the same weights, and the median counts (of
`mining`, which takes minutes, one run each); that both compute the same is checked before. Each row has its operations
counted and its floor: the time that these would take at the device's peak (of a CPU the best matrix product measured).
Where a target is missed, a profile is kept.
Parts that need a GPU are marked as not run on a machine without one. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers.utils import logging as transformers_logging

from benchmarks.results_json import RESULTS
from benchmarks.sections import kept_sections, run_sections
from benchmarks.training import data, forward, gpu, mel, mining, step
from benchmarks.training.report import PARTS, report
from benchmarks.training.step import Steps

PACKAGES = ("qwen_term_retrieval", "peft", "sentence_transformers", "torch", "transformers")
NO_GPU = {"not_run": "there is no CUDA device on this machine"}
SMALL_ENCODER: dict[str, Any] = {
    **forward.REAL_SIZE,
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
}
SMALL_STEPS = Steps(SMALL_ENCODER | {"model_type": "whisper", "num_mel_bins": 80}, batch_size=4, steps=1, turns=1)

Measure = Callable[[torch.device, Path], dict[str, Any]]
MEASURES: dict[str, Measure] = {
    "forward": lambda device, _: forward.run(device),
    "step": step.run,
    "mel": lambda device, _: mel.run(device),
    "data": lambda device, _: data.run(device),
    "mining": lambda device, _: mining.run(device),
    "gpu": gpu.run,
}
QUICK: dict[str, Measure] = {
    "forward": lambda device, _: forward.run(device, encoder_config=SMALL_ENCODER, num_clips=2, repetitions=2),
    "step": lambda device, work: step.run(device, work, SMALL_STEPS),
    "mel": lambda device, _: mel.run(device, num_clips=8, repetitions=2),
    "data": lambda device, _: data.run(device, num_steps=2),
    "mining": lambda device, _: mining.run(device, num_clips=600, num_terms=3_000, dim=128),
    "gpu": lambda device, work: gpu.run(device, work, encoder_config=SMALL_ENCODER, batch_size=8, num_steps=2),
}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions; results go into --work")
    parser.add_argument("--work", type=Path, default=Path("outputs/training-benchmark"), help="packs are kept here")
    parser.add_argument("--results", type=Path, help="folder of training.json and training.md")
    options = parser.parse_args(argv)
    options.results = options.results or (options.work if options.quick else RESULTS)
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    quiet()
    path = options.results / "training.json"
    runs = {part: partial(measured, part, options) for part in options.part}
    run_sections(path, kept_sections(path, {"quick": options.quick}, PARTS), runs, report, packages=PACKAGES)


def measured(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a part found on each device."""
    measure = (QUICK if options.quick else MEASURES)[part]
    devices = [torch.device("cpu")] if part != "gpu" else []
    devices += [torch.device("cuda", 0)] if torch.cuda.is_available() else []
    found = {device.type: measure(device, options.work) for device in devices}
    return found if "cuda" in found else {**found, "cuda": NO_GPU}


def quiet() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()


if __name__ == "__main__":
    main()
