"""What augmentation costs on one core: `python -m benchmarks.augmentation`.

Bucketed batches of the demo corpus under the default settings, stage by stage, in CPU microseconds a clip, against the
bare collate, and against the same distortions written as a loop over clips in numpy. The loop is also the proof: every
sample must come out the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import torch

from benchmarks.markdown import table
from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.augmentation.config import AugmentationConfig
from qwen_term_retrieval.augmentation.distortion import collate_distortions, distort
from qwen_term_retrieval.augmentation.impulse_responses import FILTER_TAPS, band_filter
from qwen_term_retrieval.augmentation.planning import Distortion, DistortionPlanner, Ingredients
from qwen_term_retrieval.packs.clip_reader import ClipReader
from qwen_term_retrieval.runs.sampling import LengthBucketedSampler, Visit

BATCH_SIZE = 128
NUM_BATCHES = 8
REPEATS = 3
BARE, BATCHED, LOOP = "collate without augmentation", "distort, batched", "distort, numpy loop"
_LOUDEST = 32767.0


def convolve(wave: np.ndarray, response: np.ndarray, delay: int = 0) -> np.ndarray:
    size = 1 << (len(wave) + len(response) - 2).bit_length()
    spectrum = np.fft.rfft(wave, size) * np.fft.rfft(response, size)
    return np.fft.irfft(spectrum, size)[delay : delay + len(wave)]


def telephone(wave: np.ndarray) -> np.ndarray:
    loud = max(1.0, np.abs(wave).max() / _LOUDEST)
    compressed = np.log1p(np.abs(wave[::2] / loud) * 255 / 32768).clip(max=np.log(256)) / np.log(256)
    coded = np.zeros_like(wave)
    coded[::2] = 2 * loud * np.sign(wave[::2]) * np.expm1(np.round(compressed * 127) * np.log(256) / 127) * 32768 / 255
    return convolve(coded, band_filter(0.0, 3800.0).astype(float), FILTER_TAPS // 2)


def distort_clip(clip: Ingredients) -> np.ndarray:
    """The peer: one clip, in numpy."""
    wave = clip.pcm.astype(float)
    if clip.impulse_response is not None:
        wet = convolve(wave, clip.impulse_response.astype(float))
        wave = wet * np.linalg.norm(wave) / np.linalg.norm(wet)
    if clip.added is not None:
        noise = clip.added.astype(float)
        gain = np.linalg.norm(wave) / np.linalg.norm(noise)
        wave = wave + noise * (1.0 if clip.snr_db is None else gain * 10 ** (-clip.snr_db / 20))
    if clip.band_filter is not None:
        wave = convolve(wave, clip.band_filter.astype(float), FILTER_TAPS // 2)
    if clip.telephone:
        wave = telephone(wave)
    wave *= 10 ** (clip.gain_db / 20)
    return np.round(wave * min(1.0, _LOUDEST / np.abs(wave).max())).astype(np.int16)


class Stopwatch:
    """CPU microseconds a clip of every stage."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = {}

    def __call__(self, stage: str, work: Callable[..., Any], *arguments: Any) -> Any:
        start = time.thread_time()
        result = work(*arguments)
        self.taken.setdefault(stage, []).append((time.thread_time() - start) / BATCH_SIZE * 1e6)
        return result

    def medians(self) -> dict[str, float]:
        return {stage: statistics.median(times) for stage, times in self.taken.items()}


def run_batch(batch: Sequence[Visit], clips: ClipReader, planner: DistortionPlanner, timed: Stopwatch) -> int:
    """Time every stage; returns how many clips the batch and the loop disagree on."""

    def draw() -> list[Distortion]:
        return [planner.draw(visit.draw, visit.clip, int(clips.num_samples[visit.clip])) for visit in batch]

    def render(distortions: Sequence[Distortion]) -> list[Ingredients]:
        views = clips.views([visit.clip for visit in batch])
        return [planner.render(view, distortion) for view, distortion in zip(views, distortions, strict=True)]

    timed(BARE, clips.gather, [visit.clip for visit in batch])
    heard = timed("fetch sounds, change speed", render, timed("draw", draw))
    padded = timed("collate", pad_pcm, [clip.pcm for clip in heard])
    tensors = timed("collate distortions", collate_distortions, heard)
    distorted_BS, _ = timed(BATCHED, distort, *padded, tensors)
    alone = timed(LOOP, lambda: [distort_clip(clip) for clip in heard])
    rows = zip(distorted_BS.numpy(), alone, strict=True)
    return sum(not np.array_equal(row[: len(clip)], clip) for row, clip in rows)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    clips = ClipReader(datasets.load_dataset("builders/term_audio", split="train"))
    planner = DistortionPlanner(AugmentationConfig(), clips)
    batches = list(LengthBucketedSampler(clips.num_samples, BATCH_SIZE, seed=0))[:NUM_BATCHES]
    timed = Stopwatch()
    num_different = sum(run_batch(batch, clips, planner, timed) for batch in batches * REPEATS)
    medians = timed.medians()
    print(table(["stage", "µs a clip, one core"], [[stage, f"{median:.0f}"] for stage, median in medians.items()]))
    total = sum(medians.values()) - medians[BARE] - medians[LOOP]
    print(f"augmented: {1e6 / total:.0f} clips/s; bare: {1e6 / medians[BARE]:.0f} clips/s")
    print(f"batched distortion takes {medians[BATCHED] / medians[LOOP]:.2f} of the loop's time")
    print(f"clips that differ in a sample: {num_different} of {len(batches) * BATCH_SIZE * REPEATS}")


if __name__ == "__main__":
    main()
