"""Scores of terms against one clip, higher for "this is said": (clip, terms) to float (N,).

Shapes: N terms, R their pronunciations, U sub-frames of the clip, C classes of the phoneme head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.real_speech.baselines import Matcher
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.errors import VerifierError
from qwen_term_retrieval.retrieval.explaining import hear_sounds
from qwen_term_retrieval.retrieval.looks.second_look import phoneme_head_of
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.verification.alignment import Pairs, forward_scores
from qwen_term_retrieval.verification.evidence import Candidates, gather_evidence
from qwen_term_retrieval.verification.pronunciations import PronunciationBank

_NOT_SAID = -100.0

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


class SoundScorer:
    """How likely the clip is to be the sounds of a term and nothing else, by the sound: no vector, no verifier.

    Of several pronunciations the likeliest counts. A silent clip, and a term that cannot be said in it, score -100.

    Raises:
        VerifierError: the model has no phoneme head.
    """

    def __init__(self, retriever: TermRetriever):
        self.head = phoneme_head_of(retriever.model)
        self.encoder = retriever.encoder

    def __call__(self, pcm: NDArray[np.int16], terms: Sequence[str]) -> NDArray[np.floating]:
        scores_N = np.full(len(terms), _NOT_SAID)
        bank = self.pronunciations(terms)
        if pcm.any() and len(bank):
            log_probs_UC = self.hear(pcm)
            rows_R = np.arange(len(bank))
            pairs = Pairs.of_whole_clips(rows_R, np.zeros_like(rows_R), np.array([len(log_probs_UC)]))
            scores_R = forward_scores(log_probs_UC[None], bank, pairs).numpy() / bank.lengths
            np.maximum.at(scores_N, bank.owners_R, scores_R)
        return scores_N

    def pronunciations(self, terms: Sequence[str]) -> PronunciationBank:
        alphabet = self.head.alphabet
        return PronunciationBank.of_owned(alphabet.pronunciations(list(terms)), alphabet.num_classes)

    def hear(self, pcm: NDArray[np.int16]) -> torch.Tensor:
        return hear_sounds(self.encoder, pcm, sampling_rate=SAMPLING_RATE)


class VerifierScorer:
    """The strength that the model's verifier gives to the evidence for a term anywhere in the clip.

    It is what ranks the candidates of a search, before their margins and the number of terms make it a probability. A
    silent clip scores -100 for every term.

    Raises:
        VerifierError: the model has no phoneme head, or no verifier.
    """

    def __init__(self, retriever: TermRetriever):
        self.sounds, self.cosine = SoundScorer(retriever), CosineScorer(retriever)
        if retriever.verifier is None:
            raise VerifierError("the model has no fitted verifier: `qtr calibrate` fits one")
        self.verifier = retriever.verifier

    def __call__(self, pcm: NDArray[np.int16], terms: Sequence[str]) -> NDArray[np.floating]:
        if not pcm.any():
            return np.full(len(terms), _NOT_SAID)
        log_probs_UC = self.sounds.hear(pcm)
        owners_N = np.arange(len(terms))
        cosines_N = self.cosine(pcm, terms).astype(np.float32)
        starts_N, ends_N = np.zeros_like(owners_N), np.full_like(owners_N, len(log_probs_UC))
        evidence = gather_evidence(
            log_probs_UC[None],
            np.array([len(log_probs_UC)]),
            self.sounds.pronunciations(terms),
            Candidates(np.zeros_like(owners_N), owners_N, cosines_N, starts_N, ends_N),
            frame_rate=self.sounds.head.frame_rate,
        )
        return self.verifier.strengths_of(evidence.features_PF)


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
