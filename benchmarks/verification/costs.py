"""What each way to look at a clip costs, beside the transcript search: `python -m benchmarks.verification.costs`.

Clips of three seconds of real speech, one at a time, on a quiet machine; every way takes its turn at each clip, and the
median over clips counts. The transcript search is Whisper-base's greedy transcript and the nearest of the terms by
spelling, as `benchmarks.real_speech` has it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.markdown import table
from benchmarks.real_speech.baselines import BASELINES
from benchmarks.real_speech.whisper_transcripts import whisper_base
from benchmarks.results_json import RESULTS, write_results
from benchmarks.search.banks import spoken_clips
from benchmarks.verification.terms import real_terms
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.retrieval.explaining import hear_sounds
from qwen_term_retrieval.retrieval.looks.first_look import nearest_places
from qwen_term_retrieval.retrieval.looks.second_look import SecondLook
from qwen_term_retrieval.retrieval.looks.spelling_look import SpellingLook
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.verification.evidence import Candidates, gather_evidence

MEASURE = "Levenshtein, then Jaro-Winkler"
SMALL, LARGE = 10_000, 100_000
NUM_ALIGNED, NUM_SPELLED = 200, 25
ENCODER, TRANSCRIPT = "the encoder", f"transcript search, {LARGE:,} terms"
Work = Callable[[], Any]


def ways_of(pcm: NDArray[np.int16], bench: Bench) -> Mapping[str, Work]:
    """What is timed of a clip; what each needs of the others is made here, untimed."""
    retriever, model = bench.retriever, bench.retriever.model
    pcm_BS, num_samples_B = torch.from_numpy(pcm)[None], torch.tensor([len(pcm)])
    with torch.inference_mode():
        frames_BTH, num_frames_B = model.audio_frames(pcm_BS, num_samples_B)
    head = bench.sounds.head
    windows = retriever.encoder.encode([pcm], sampling_rate=SAMPLING_RATE)
    log_probs_UC = hear_sounds(retriever.encoder, pcm, sampling_rate=SAMPLING_RATE)
    near = nearest_places(windows, bench.large, NUM_ALIGNED)[0]
    places = np.array([place for place, *_ in near])
    starts, ends = np.zeros_like(places), np.full_like(places, len(log_probs_UC))
    cosines = np.array([cosine for _, cosine, *_ in near], np.float32)
    candidates = Candidates(np.zeros_like(places), places, cosines, starts, ends)
    pronunciations = bench.large.pronunciations_of(np.unique(places))
    named = [bench.large.terms[place].text for place in places[:NUM_SPELLED].tolist()]

    def encode() -> None:
        with torch.inference_mode():
            model.audio_frames(pcm_BS, num_samples_B)

    def hear_and_align() -> None:
        with torch.inference_mode():
            head(frames_BTH, num_frames_B)
        num_B = np.array([len(log_probs_UC)])
        gather_evidence(log_probs_UC[None], num_B, pronunciations, candidates, frame_rate=head.frame_rate)

    def by_sounds(index: Any) -> Work:
        return lambda: index.sounds.search(log_probs_UC, NUM_ALIGNED, free=True)

    return {
        ENCODER: encode,
        f"head, and alignment of {NUM_ALIGNED} candidates": hear_and_align,
        f"search by sounds, {SMALL:,} terms": by_sounds(bench.small),
        f"search by sounds, {LARGE:,} terms": by_sounds(bench.large),
        f"the whole default search, {LARGE:,} terms": lambda: retriever.search(pcm, sampling_rate=SAMPLING_RATE),
        f"decoder, {NUM_SPELLED} candidates": lambda: bench.spelling.verifier.score(pcm, named),
        "transcript": lambda: bench.transcriber.transcribe(pcm),
        TRANSCRIPT: lambda: bench.matcher.scores([bench.transcriber.transcribe(pcm)], MEASURE),
    }


class Bench:
    """A model, its indexes, and the peer."""

    def __init__(self, model: str):
        terms = real_terms(LARGE)
        self.retriever = TermRetriever.from_pretrained(model, device="cpu")
        self.small = self.retriever.index(terms[:SMALL])
        self.large = self.retriever.index(terms)
        self.sounds, self.spelling = SecondLook(self.retriever.model), SpellingLook(self.retriever.model)
        self.transcriber, self.matcher = whisper_base(), BASELINES["fuzzy"](terms)


def measure(model: str, num_clips: int) -> dict[str, float]:
    """Way -> median milliseconds of a clip."""
    bench = Bench(model)
    taken: dict[str, list[float]] = {}
    for number, pcm in enumerate(spoken_clips(num_clips + 1)):
        for name, work in ways_of(pcm, bench).items():
            started = time.perf_counter()
            work()
            if number:  # the first warms up
                taken.setdefault(name, []).append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def as_table(found: Mapping[str, float]) -> str:
    rows = [
        [name, f"{value:.1f}", f"{value / found[ENCODER]:.2f}", f"{value / found[TRANSCRIPT]:.3f}"]
        for name, value in found.items()
    ]
    return table(["a clip of 3 s", "ms", "of the encoder", "of the transcript search"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", help="on a Whisper tower, with a verifier (default base)")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options.model, options.clips)
    about = {"model": options.model, "clips": options.clips, "threads": options.threads, "milliseconds": found}
    write_results(RESULTS / "verification_costs.json", about, packages=("torch", "transformers", "rapidfuzz"))
    text = as_table(found) + "\n"
    (RESULTS / "verification_costs.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
