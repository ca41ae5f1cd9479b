"""What a recogniser and a search would do instead: a Whisper transcript, then the nearest term.

Three ways to be near: in spelling (rapidfuzz), in sound (edit distance of IPA), in meaning (MiniLM). Each is given its
best chance. Numbers, ordinals and signs are spelled out on both sides. Of several edit measures the one that does best
*on the test clips* is reported, which favours the baseline. Plain edit ratios tie often, and a tie counts as a loss,
so each also comes with a second measure to break ties, and sound also with spelling as an equal partner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rapidfuzz import fuzz, process
from rapidfuzz.distance import Indel, JaroWinkler, Levenshtein
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer

from benchmarks.real_speech.spelling import spell_out
from qwen_term_retrieval.models.weights.checkpoints import resolve_checkpoint
from qwen_term_retrieval.text.phonetics import GraphemeToPhoneme, get_phonemizer

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_TIE_BREAK = 1e-3
_WORTH_A_BAR = 20  # batches; fewer take under two seconds
_FIRST_PRIVATE_CHARACTER = 0xE000
_EDIT_MEASURES: Mapping[str, Callable[..., float]] = {
    "Levenshtein": Levenshtein.normalized_similarity,
    "indel ratio": Indel.normalized_similarity,
    "Jaro-Winkler": JaroWinkler.normalized_similarity,
}


class Matcher(Protocol):
    """Scores of transcripts against a fixed list of terms: float32 (Q, N), higher is nearer, about [0, 1]."""

    @property
    def measures(self) -> Sequence[str]: ...

    def scores(self, transcripts: Sequence[str], measure: str) -> NDArray[np.float32]: ...


class FuzzyMatcher:
    """Nearest in spelling, by rapidfuzz."""

    # The first of equals is chosen: the one that leaves fewest ties, which tell in larger banks.
    measures = ("Levenshtein, then Jaro-Winkler", *_EDIT_MEASURES, "token sort ratio", "WRatio")

    def __init__(self, terms: Sequence[str]):
        self.spelled_terms = [spell_out(term) for term in terms]

    def scores(self, transcripts: Sequence[str], measure: str) -> NDArray[np.float32]:
        return _edit_scores([spell_out(text) for text in transcripts], self.spelled_terms, measure)


class PhoneticMatcher:
    """Nearest in sound: edit measures over phonemes, one character each, with or without a say for the spelling."""

    spelling_weights: ClassVar = {"Levenshtein, then spelling": _TIE_BREAK, "half sound, half spelling": 0.5}
    measures = (*_EDIT_MEASURES, "Levenshtein, then Jaro-Winkler", *spelling_weights)

    def __init__(self, terms: Sequence[str], phonemizer: GraphemeToPhoneme):
        self.phonemizer = phonemizer
        self._character_of: dict[str, str] = {}
        self.spelled_terms = [spell_out(term) for term in terms]
        self.sounds = self._sounds(self.spelled_terms)

    def _sounds(self, texts: Sequence[str]) -> list[str]:
        return ["".join(map(self._character, phonemes)) for phonemes in self.phonemizer.phonemes(texts)]

    def _character(self, phoneme: str) -> str:
        return self._character_of.setdefault(phoneme, chr(_FIRST_PRIVATE_CHARACTER + len(self._character_of)))

    def scores(self, transcripts: Sequence[str], measure: str) -> NDArray[np.float32]:
        spelled = [spell_out(text) for text in transcripts]
        sounds = self._sounds(spelled)
        if measure not in self.spelling_weights:
            return _edit_scores(sounds, self.sounds, measure)
        weight = np.float32(self.spelling_weights[measure])
        in_sound = _edit_scores(sounds, self.sounds, "Levenshtein")
        return (np.float32(1) - weight) * in_sound + weight * _edit_scores(spelled, self.spelled_terms, "Levenshtein")


def _edit_scores(queries: list[str], terms: list[str], measure: str) -> NDArray[np.float32]:
    if measure == "Levenshtein, then Jaro-Winkler":
        first, second = (_edit_scores(queries, terms, name) for name in ("Levenshtein", "Jaro-Winkler"))
        return first + np.float32(_TIE_BREAK) * second
    if measure in _EDIT_MEASURES:
        return process.cdist(queries, terms, scorer=_EDIT_MEASURES[measure], workers=-1, dtype=np.float32)
    scorer = {"token sort ratio": fuzz.token_sort_ratio, "WRatio": fuzz.WRatio}[measure]
    return process.cdist(queries, terms, scorer=scorer, workers=-1, dtype=np.float32) / np.float32(100)


class MeaningMatcher:
    """Nearest in meaning: cosine of mean-pooled sentence embeddings (all-MiniLM-L6-v2)."""

    measures = ("cosine",)

    def __init__(self, terms: Sequence[str], folder: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()
        self.terms_ND = self.embed([spell_out(term) for term in terms])

    def scores(self, transcripts: Sequence[str], measure: str) -> NDArray[np.float32]:
        return (self.embed([spell_out(text) for text in transcripts]) @ self.terms_ND.T).numpy()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], *, batch_size: int = 256) -> torch.Tensor:
        """(N, D) unit vectors; batched by length, because padding is what costs."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        vectors_ND = torch.empty(len(texts), self.model.config.hidden_size)
        batches = range(0, len(order), batch_size)
        for first in tqdm(batches, desc="MiniLM embeddings", unit="batch", disable=len(batches) < _WORTH_A_BAR):
            rows = order[first : first + batch_size]
            inputs = self.tokenizer([texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt")
            states_BLH = self.model(**inputs).last_hidden_state
            mask_BL1 = inputs["attention_mask"][:, :, None]
            vectors_ND[rows] = torch.nn.functional.normalize((states_BLH * mask_BL1).sum(1) / mask_BL1.sum(1), dim=-1)
        return vectors_ND


BASELINES: dict[str, Callable[[Sequence[str]], Matcher]] = {
    "fuzzy": FuzzyMatcher,
    "IPA": lambda terms: PhoneticMatcher(terms, get_phonemizer("espeak:en-us")),
    "MiniLM": lambda terms: MeaningMatcher(terms, resolve_checkpoint(MINILM)),
}
