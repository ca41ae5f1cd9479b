"""Real terms, indexed with a model's own text tower, and the windows of real speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.data.clips import speech_clips, speech_corpus
from benchmarks.verification.terms import real_terms
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.text.glossary import Glossary

CLIP_SECONDS = 3.0
_RATE = 16_000


def glossary_of(number: int, work: Path) -> Glossary:
    """So many distinct terms of the word lists and of WordNet's example sentences."""
    path = work / f"terms-{number}.txt"
    if not path.is_file():
        path.write_text("\n".join(real_terms(number)) + "\n", encoding="utf-8")
    return Glossary.from_file(path)


def opened_index(retriever: TermRetriever, number: int, work: Path) -> TermIndex:
    """The index of so many terms, made where it is not there."""
    folder = work / f"index-{number}"
    if folder.is_dir():
        return retriever.load_index(folder)
    return retriever.index_to(folder, glossary_of(number, work))


def spoken_clips(number: int) -> list[np.ndarray]:
    """Clips of three seconds, int16 at 16 kHz."""
    samples = int(CLIP_SECONDS * _RATE)
    clips, now = [], np.zeros(0, np.int16)
    for pcm in speech_clips(20 * number, speech_corpus(), 5):
        now = np.concatenate([now, pcm])
        if len(now) >= samples:
            clips.append(now[:samples])
            now = np.zeros(0, np.int16)
        if len(clips) == number:
            return clips
    raise ValueError(f"{number} clips wanted, there are {len(clips)}")


def windows_of(retriever: TermRetriever, clips: list[np.ndarray], most: int) -> list[torch.Tensor]:
    """`most` windows of each clip, evenly drawn from those that a search scores."""
    found = []
    for clip in clips:
        encoded = retriever.encoder.encode([clip], sampling_rate=_RATE)
        vectors_WD = encoded.vectors[0][encoded.mask[0]]
        rows = np.linspace(0, len(vectors_WD) - 1, min(most, len(vectors_WD))).round().astype(int)
        found.append(vectors_WD[rows].float().cpu())
    return found


def noise(number: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(number, dim, generator=generator), dim=1)
