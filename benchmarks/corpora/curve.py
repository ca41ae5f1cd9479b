"""What more near-human clips, and more voices, are worth on recordings of people.

    python -m benchmarks.corpora.near_human       # the clips first
    python -m benchmarks.corpora.curve            # every point whose clips are there and that has no result yet
    python -m benchmarks.corpora.curve --report   # the table and the picture of what is there

A point is a model trained on so many clips, said by Kokoro's own voices alone or by mixtures of them as well, on the
frames of a frozen Whisper-base, with a phoneme head: `STEPS` steps of `BATCH`. It is searched by windows
among the banks of `ablation.py`, and its head spells what the volunteers and the studio voice say. A smaller set of
clips is a part of a larger one.
"""

from __future__ import annotations

import functools
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from benchmarks.corpora.near_human import PACK, is_mixture
from benchmarks.markdown import table
from benchmarks.real_speech.ablations import ablation
from benchmarks.real_speech.ablations.ablation import (
    TOWER,
    WINDOWS,
    distractors,
    run_variants,
    small_run,
    test_ranks,
    test_sets,
)
from benchmarks.results_json import RESULTS, write_results
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer

CLIPS = (1_250, 2_500, 5_000, 10_000, 20_000)
KOKOROS_OWN, ALL = 26, 300
MOST_OF_OWN = 10_000
STEPS, BATCH = 160, 256
WORK = Path("outputs/near_human_curve")
_BANK, _CUTOFFS = "+10k", (1, 10)
_ABOUT = (
    f"{STEPS} steps of {BATCH} on three mixed layers of a frozen Whisper-base, the phoneme head's loss weighed .3. "
    "R@1 / R@10 by windows among 10,000 other terms, and phoneme error rate (PER) of the head, mean over seeds "
    "(lowest–highest R@1). Voices: 26 of Kokoro's own, or up to 300 with mixtures of two. Volunteers: KTuberling's "
    "English words, about two speakers, n = 72. Studio: Asterisk prompts of at most four words, one speaker, n = 341."
)


@dataclass(frozen=True)
class Point:
    clips: int
    voices: int

    @property
    def name(self) -> str:
        return f"{self.clips} clips, {self.voices} voices"


POINTS = tuple(
    Point(clips, voices) for clips in CLIPS for voices in (KOKOROS_OWN, ALL) if voices == ALL or clips <= MOST_OF_OWN
)


@functools.cache
def clips_of(voices: int) -> datasets.Dataset:
    """The training clips of the pack that so many voices say, in the order in which the corpus grows."""
    rows = datasets.load_dataset(str(PACK), split="train")
    own = [row for row, speaker in enumerate(rows["speaker"]) if voices == ALL or not is_mixture(speaker)]
    return rows.select(own).sort("number")


def run(point: Point, seed: int, work: Path) -> dict[str, Any]:
    """Train, test, and give the numbers."""
    started = time.monotonic()
    torch.manual_seed(seed)
    model = TermRetrievalModel(
        TermRetrievalConfig(audio_tower=TOWER, audio_layers=3, windows=WINDOWS, embedding_dim=384)
    )
    model.add_phoneme_head()
    args = small_run(
        work / "runs",
        seed,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=1.5e-3,
        warmup_steps=30,
        phoneme_loss_weight=0.3,
    )
    trainer = TermRetrievalTrainer(model, args, clips_of(point.voices).select(range(point.clips)))
    trainer.train()
    trained_s = time.monotonic() - started
    return {
        "variant": point.name,
        "clips": point.clips,
        "voices": point.voices,
        "seed": seed,
        "train_s": round(trained_s, 1),
        "ranks": test_ranks(model, model.encode_terms(distractors(ablation.WORK)), ablation.WORK),
        "phoneme_error_rate": {
            name: trainer.evaluate(rows)["eval_phoneme_error_rate"] for name, rows in test_sets(ablation.WORK).items()
        },
    }


def report(results: Path, out: Path = RESULTS) -> str:
    """Write `near_human_curve.{json,md,png}` into `out`; return the table."""
    runs: dict[Point, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(results.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        runs[Point(found["clips"], found["voices"])].append(found)
    if not runs:
        raise SystemExit(f"{results} holds no result: run without --report")
    points = {point: _numbers(runs[point]) for point in POINTS if point in runs}
    rows = [{"clips": point.clips, "voices": point.voices, **numbers} for point, numbers in points.items()]
    packages = ("torch", "transformers", "datasets", "numpy", "espeakng-loader", "onnxruntime")
    write_results(out / "near_human_curve.json", {"about": _ABOUT, "points": rows}, packages=packages)
    header = ["clips", "voices", "volunteers", "PER", "studio", "PER", "seeds"]
    lines = [
        [
            f"{point.clips:,}",
            point.voices,
            *_cells(numbers["volunteers"]),
            *_cells(numbers["studio"]),
            len(numbers["seeds"]),
        ]
        for point, numbers in points.items()
    ]
    markdown = f"{_ABOUT}\n\n{table(header, lines)}"
    (out / "near_human_curve.md").write_text(markdown, encoding="utf-8")
    draw(points, out / "near_human_curve.png")
    return markdown


def _numbers(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Recall and error rate of each set, by seed."""
    numbers: dict[str, Any] = {"seeds": [run["seed"] for run in runs]}
    for test in runs[0]["ranks"]:
        ranks = [np.array(run["ranks"][test][_BANK]) for run in runs]
        numbers[test] = {f"R@{k}": [round(float((each <= k).mean()), 4) for each in ranks] for k in _CUTOFFS}
        numbers[test]["PER"] = [round(run["phoneme_error_rate"][test], 4) for run in runs]
    return numbers


def _cells(numbers: Mapping[str, Sequence[float]]) -> list[str]:
    first, tenth, wrong = (numbers[name] for name in ("R@1", "R@10", "PER"))
    spread = f" ({min(first):.2f}–{max(first):.2f})" if len(first) > 1 else ""
    return [f"{np.mean(first):.3f}{spread} / {np.mean(tenth):.3f}", f"{np.mean(wrong):.3f}"]


def draw(points: Mapping[Point, Mapping[str, Any]], path: Path) -> None:
    """Recall and phoneme error rate against clips, a line for each number of voices; dots are seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for axis, name in zip(axes, ("R@1", "R@10", "PER"), strict=True):
        for (test, voices), colour in zip(
            [(test, voices) for test in ("volunteers", "studio") for voices in (KOKOROS_OWN, ALL)],
            ("#c44e52", "#8c2d31", "#4c9bd4", "#1f4e79"),
            strict=True,
        ):
            own = {point.clips: numbers[test][name] for point, numbers in points.items() if point.voices == voices}
            label = f"{test}, {voices} voices"
            style = "--" if voices == KOKOROS_OWN else "-"
            axis.plot(list(own), [np.mean(each) for each in own.values()], style, color=colour, label=label)
            for clips, each in own.items():
                axis.plot([clips] * len(each), each, ".", color=colour, markersize=4)
        axis.set_xscale("log")
        axis.set_xticks(CLIPS, [f"{clips:,}" for clips in CLIPS], fontsize=8)
        axis.minorticks_off()
        axis.set_xlabel("near-human clips")
        axis.set_title({"PER": "phoneme error rate"}.get(name, f"{name}, +10,000 terms"))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    if not PACK.is_dir():
        raise SystemExit(f"there is no {PACK}: `python -m benchmarks.corpora.near_human` makes it")
    there = tuple(point for point in POINTS if len(clips_of(point.voices)) >= point.clips)
    for point in POINTS:
        if point not in there:
            print(f"{point.name}: left out, the pack has {len(clips_of(point.voices)):,} clips of these voices")
    run_variants(__doc__, there, WORK, run, report)


if __name__ == "__main__":
    main()
