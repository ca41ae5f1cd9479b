"""Part `mel`: spectrograms of 3 s clips, ours on the device beside `WhisperFeatureExtractor` in the collator.

All rows begin at int16 clips and end at float32 mel frames on the device. The stock collator is what a Trainer user
writes: float arrays into the extractor, which pads to the 30 s that the encoders ask for. Ours is judged against that.
The extractor's best case, padded to the longest clip alone, is listed too: no stock encoder takes it, and its last
frames hear the clip's end reflected where they would hear silence, so its outputs are not held to be equal.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import WhisperFeatureExtractor

from benchmarks.training.clips import three_second_clips, waves
from benchmarks.training.measure import Row, comparison, largest_difference, take_turns
from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.models.audio_towers.mel import HOP_SAMPLES, log_mel

AT_LEAST = {"cpu": 2.0, "cuda": 10.0}
TOLERANCE = 1e-5
NUM_MEL_BINS = 128
MAX_FRAMES = 3000
FFT_SAMPLES, FREQUENCIES = 400, 201
OURS, STOCK = "ours", "stock collator"
LONGEST, ON_DEVICE = "stock, padded to the longest", "stock, computed on the GPU"


def run(device: torch.device, *, num_clips: int = 64, repetitions: int = 9) -> dict[str, Any]:
    """Times of one batch of clips."""
    clips = three_second_clips(num_clips)
    extractor = WhisperFeatureExtractor(feature_size=NUM_MEL_BINS)

    def ours() -> torch.Tensor:
        pcm_BS, num_samples_B = pad_pcm(clips)
        return log_mel(pcm_BS.to(device), num_samples_B, num_mel_bins=NUM_MEL_BINS, max_frames=MAX_FRAMES)[0]

    def stock(**settings: Any) -> torch.Tensor:
        features = extractor(waves(clips), sampling_rate=SAMPLING_RATE, return_tensors="pt", **settings)
        return features["input_features"].to(device)

    runs = {OURS: ours, STOCK: stock, LONGEST: lambda: stock(padding="longest")}
    rows = {
        OURS: Row("int16 to the device, `log_mel` there"),
        STOCK: Row("`WhisperFeatureExtractor`, 30 s, and to the device", beside=OURS),
        LONGEST: Row('the same with `padding="longest"`', beside=OURS),
    }
    if device.type == "cuda":
        runs[ON_DEVICE] = lambda: stock(device="cuda")
        rows[ON_DEVICE] = Row('the stock collator with `device="cuda"`', beside=OURS)
    num_frames = len(clips[0]) // HOP_SAMPLES
    own_BMT, stock_BMT, longest_BMT = (run()[..., :num_frames] for run in (ours, stock, runs[LONGEST]))
    differences = {
        "largest_difference": largest_difference(own_BMT, stock_BMT, TOLERANCE, "mel frames"),
        "largest_difference_padded_to_the_longest": largest_difference(own_BMT, longest_BMT, math.inf, "mel frames"),
    }
    take_turns(rows, runs, repetitions, device)
    rows[OURS].flops = num_clips * mel_flops(ours().shape[-1])
    for name in runs.keys() - {OURS}:
        rows[name].flops = num_clips * mel_flops(num_frames if name == LONGEST else MAX_FRAMES)
    found = comparison(
        rows,
        ours=OURS,
        against=STOCK,
        at_least=AT_LEAST[device.type],
        device=device,
        dtype=torch.float32,
        profiled=ours,
    )
    return found | {"clips": num_clips, **differences}


def mel_flops(num_frames: int) -> int:
    """Operations of the transforms (2.5 n log2 n each, as FFTW counts real ones) and of the filters."""
    transform = 2.5 * FFT_SAMPLES * math.log2(FFT_SAMPLES)
    return round(num_frames * (transform + 2 * FREQUENCIES * NUM_MEL_BINS))
