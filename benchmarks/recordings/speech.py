"""Recordings made of the demo corpus's test clips, with the true end of each term."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.packs.loading import load_split
from qwen_term_retrieval.text.wordlists import wordnet_terms

CORPUS = "builders/term_audio"


def clips() -> Iterator[tuple[np.ndarray, list[tuple[str, float]]]]:
    """Clips of the test split, over and over, with (term, its end in seconds), and a pause behind each."""
    rows = load_split(CORPUS, "test")
    generator = np.random.default_rng(0)
    while True:
        for row in generator.permutation(len(rows)).tolist():
            clip = rows[row]
            pause = generator.normal(0, 8, int(generator.uniform(0.2, 0.9) * SAMPLING_RATE)).astype(np.int16)
            ends = clip["term_ends"] or [None] * len(clip["terms"])
            said = [(term, end) for term, end in zip(clip["terms"], ends, strict=True) if end is not None]
            yield np.concatenate([clip["audio"].pcm, pause]), said


def write_speech(path: Path, seconds: int) -> None:
    """So much speech, as FLAC."""
    with soundfile.SoundFile(path, "w", SAMPLING_RATE, 1, "PCM_16", format="FLAC") as file:
        left = seconds * SAMPLING_RATE
        for pcm, _ in clips():
            file.write(pcm[:left])
            left -= len(pcm)
            if left <= 0:
                return


def live_speech(seconds: int) -> tuple[np.ndarray, list[tuple[str, float]]]:
    """So much speech, and the terms said in it with their ends in seconds."""
    pieces, said, now = [], [], 0
    for pcm, terms in clips():
        said += [(term, now / SAMPLING_RATE + end) for term, end in terms]
        pieces.append(pcm)
        now += len(pcm)
        if now >= seconds * SAMPLING_RATE:
            return np.concatenate(pieces), said
    raise AssertionError


def glossary(num_terms: int) -> list[str]:
    """What the clips say, and words of WordNet up to so many terms."""
    said = sorted({term for row in load_split(CORPUS, "test").remove_columns("audio") for term in row["terms"]})
    known = {term.casefold() for term in said}
    return [*said, *(term for term in wordnet_terms() if term.casefold() not in known)][:num_terms]
