"""Pairs of a clip and a term: the clip's own, the wrong ones nearest to it in sound, and far ones.

As in LibriPhrase (Shin et al. 2022), the own terms are the positives of two tests: against the near terms (hard) and
against the far ones (easy). Near and far are by edit distance of espeak-ng phonemes over the longer length. A term
with the very phonemes of the clip's own is in neither, for no ear can tell them apart; nor is one whose words are said
in the clip ("key" in "pound key").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from benchmarks.real_speech.judged_sets import SHORT_WORDS, TestSet
from benchmarks.real_speech.spelling import letters_of, spell_out
from benchmarks.real_speech.term_banks import make_banks
from qwen_term_retrieval.audio.decoding import clip_pcm
from qwen_term_retrieval.evaluation.roc import area_under_roc, equal_error_rate
from qwen_term_retrieval.text.phonetics import GraphemeToPhoneme
from qwen_term_retrieval.text.spellings import spoken_spellings
from qwen_term_retrieval.text.wordlists import medical_terms, wordnet_terms

Kind = Literal["own", "hard", "easy"]
SPLITS: tuple[Kind, ...] = ("easy", "hard")
WRONG_TERMS = 3  # of each kind, for a clip
FAR = 0.6  # share of the phonemes that differ
NUM_DISTRACTORS = 10_000
_SEED = 20261130


@dataclass(frozen=True)
class ScoredClip:
    """A clip (path, encoded bytes, or int16 at 16 kHz), who speaks, and the terms that it is paired with."""

    key: str
    audio: Any
    speaker: str
    terms: tuple[str, ...]
    kinds: tuple[Kind, ...]

    def pcm(self) -> NDArray[np.int16]:
        return clip_pcm(self.audio, 16_000, name=self.key)


def pairs_of_set(test_set: TestSet, phonemizer: GraphemeToPhoneme) -> list[ScoredClip]:
    """Pairs of the short clips of a real set with its own texts and 10,000 distractors of `term_banks.py`."""
    utterances = [each for each in test_set.utterances() if len(spell_out(each.text).split()) <= SHORT_WORDS]
    texts = [each.text for each in utterances]
    banks = make_banks(texts, [*wordnet_terms(), *medical_terms()], {"pool": NUM_DISTRACTORS}, hard=False)
    wrong = wrong_terms(texts, banks.terms, phonemizer)
    return [
        ScoredClip(
            each.key,
            each.audio,
            each.speaker or "",
            (each.text, *near, *far),
            ("own", *(["hard"] * len(near)), *(["easy"] * len(far))),
        )
        for each, (near, far) in zip(utterances, wrong, strict=True)
    ]


def wrong_terms(
    texts: Sequence[str], pool: Sequence[str], phonemizer: GraphemeToPhoneme, *, seed: int = _SEED
) -> list[tuple[list[str], list[str]]]:
    """For each text the nearest terms of the pool in sound, nearest first, and as many far ones, drawn at random."""
    generator = np.random.default_rng(seed)
    sounds = _as_strings(phonemizer.phonemes([spell_out(text) for text in (*texts, *pool)]))
    sounds_of_texts, sounds_of_pool = sounds[: len(texts)], sounds[len(texts) :]
    letters = np.array([letters_of(term) for term in pool])
    found = []
    for text, sound in zip(texts, sounds_of_texts, strict=True):
        (distance_N,) = process.cdist([sound], sounds_of_pool, scorer=Levenshtein.normalized_distance)
        said = {letters_of(run) for run in spoken_spellings(text)}
        wrong_N = (distance_N > 0) & ~np.isin(letters, list(said))
        near = np.argsort(np.where(wrong_N, distance_N, np.inf), kind="stable")[:WRONG_TERMS]
        far = generator.choice(np.flatnonzero(wrong_N & (distance_N >= FAR)), WRONG_TERMS, replace=False)
        found.append(([pool[row] for row in near], [pool[row] for row in far]))
    return found


def _as_strings(sounds: Sequence[Sequence[str]]) -> list[str]:
    """A character a phoneme, so that an edit is a phoneme."""
    character_of: dict[str, str] = {}
    return [
        "".join(character_of.setdefault(phoneme, chr(0xE000 + len(character_of))) for phoneme in phonemes)
        for phonemes in sounds
    ]


def split_numbers(clips: Sequence[ScoredClip], scores: Sequence[NDArray[np.floating]]) -> dict[str, dict[str, float]]:
    """split → `auc`, `eer`, and how many `positives` and `negatives` there are; splits without negatives are left out.

    Args:
        scores: of each clip's terms, in their order.
    """
    kinds = np.array([kind for clip in clips for kind in clip.kinds])
    flat = np.concatenate([np.asarray(each, np.float64) for each in scores])
    found: dict[str, dict[str, float]] = {}
    for split in SPLITS:
        chosen = (kinds == "own") | (kinds == split)
        own = kinds[chosen] == "own"
        if not own.all():
            found[split] = {
                "auc": area_under_roc(flat[chosen], own),
                "eer": equal_error_rate(flat[chosen], own),
                "positives": int(own.sum()),
                "negatives": int((~own).sum()),
            }
    return found
