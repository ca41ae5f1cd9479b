"""Scores of terms against one clip, higher for "this is said": (clip, terms) to float (N,)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.real_speech.baselines import Matcher
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.retrieval.retriever import TermRetriever

Scorer = Callable[[NDArray[np.int16], Sequence[str]], NDArray[np.floating]]
"""pcm: int16 (num_samples,), 16 kHz; terms: N; gives (N,)."""


class CosineScorer:
    """The cosine of a term and the window of the clip that is nearest to it, as a search scores them.

    A clip in which nothing can be heard scores -1 for every term.
    """

    def __init__(self, retriever: TermRetriever):
        self.retriever = retriever

    def __call__(self, pcm: NDArray[np.int16], terms: Sequence[str]) -> NDArray[np.floating]:
        windows = self.retriever.encoder.encode([pcm], sampling_rate=SAMPLING_RATE)
        if not bool(windows.mask.any()):
            return np.full(len(terms), -1.0)
        terms_ND = self.retriever.model.encode_terms(list(terms), show_progress=False).float().cpu()
        return (windows.vectors[0][windows.mask[0]] @ terms_ND.T).amax(dim=0).numpy()


class TranscriptScorer:
    """How near a term is to the transcript of the clip, by one of the measures of `baselines.py`."""

    def __init__(
        self,
        transcribe: Callable[[NDArray[np.int16]], str],
        make_matcher: Callable[[Sequence[str]], Matcher],
        measure: str,
    ):
        self.transcribe = transcribe
        self.make_matcher = make_matcher
        self.measure = measure

    def __call__(self, pcm: NDArray[np.int16], terms: Sequence[str]) -> NDArray[np.floating]:
        return self.make_matcher(terms).scores([self.transcribe(pcm)], self.measure)[0]
