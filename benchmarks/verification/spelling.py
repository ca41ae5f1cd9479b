"""The decoder's second look beside a greedy transcription of the same clip: time, and how often the right term wins.

Terms are spoken by flite; each one's candidates are itself and the terms of the bank that are spelled most like it, so
that it is much harder than what a search by sounds would hand over, and easier in that the voice is clear.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import soxr
import torch
from rapidfuzz import fuzz, process
from transformers import WhisperFeatureExtractor

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.synthesis.engines import get_engine
from qwen_term_retrieval.verification import SpellingVerifier

WHISPER = "openai/whisper-base"
_VOICES = ("slt", "rms")


def spoken(term: str, voice: str) -> np.ndarray:
    waveform, rate = get_engine("flite").say(term, voice)
    return (soxr.resample(waveform, rate, SAMPLING_RATE) * 32767).astype(np.int16)


def nearest_in_spelling(term: str, terms: list[str], number: int) -> list[str]:
    found = process.extract(term, [other for other in terms if other != term], scorer=fuzz.ratio, limit=number - 1)
    return [term, *(other for other, _, _ in found)]


@torch.inference_mode()
def spelling(terms: list[str], num_clips: int, num_candidates: tuple[int, ...] = (25, 50)) -> list[dict[str, Any]]:
    """A row for the transcription and one for each number of candidates, all at every clip in turn."""
    verifier = SpellingVerifier.from_pretrained(WHISPER)
    extractor = WhisperFeatureExtractor(feature_size=verifier.model.config.num_mel_bins)
    said = terms[:num_clips]
    clips = [spoken(term, _VOICES[number % len(_VOICES)]) for number, term in enumerate(said)]
    taken: dict[str, list[float]] = {}
    right: dict[str, list[bool]] = {}

    def timed(way: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        taken.setdefault(way, []).append((time.perf_counter() - started) * 1e3)
        return result

    def transcribe(pcm: np.ndarray) -> Any:
        mel = extractor(pcm / 32768, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
        return verifier.model.generate(mel, language="en", task="transcribe", do_sample=False, num_beams=1)

    transcribe(clips[0])
    for term, pcm in zip(said, clips, strict=True):
        timed("greedy transcription, 30 s", lambda pcm=pcm: transcribe(pcm))
        for number in num_candidates:
            candidates = nearest_in_spelling(term, terms, number)
            way = f"spelling, {number} candidates"
            scores = timed(way, lambda pcm=pcm, candidates=candidates: verifier.score(pcm, candidates))
            right.setdefault(way, []).append(int(scores.log_probs_N.argmax()) == 0)
    return [
        {"way": way, "median_ms": statistics.median(measured), "slowest_ms": max(measured)}
        | ({"recall_at_1": statistics.mean(right[way])} if way in right else {})
        for way, measured in taken.items()
    ]
