"""Emissions to search with: those of a trained head, from a file, or simulated from a pronunciation.

A simulated head is peaky, as CTC makes them: silence nearly everywhere, a sound in a frame or two. Of the sounds, so
many are heard as another, not at all, or in addition, as `error_rate` says (three fifths, one fifth, one fifth); what
was said keeps a little probability near its place. Its mistakes are random, not those of a real one, which confuses
what sounds alike.

Shapes: T frames, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

FRAMES_A_SECOND = 50
SOUNDS_A_SECOND = 11
_PAUSE = 15  # frames before and after the term


@dataclass(frozen=True)
class HeardClip:
    text: str
    log_probs_TC: torch.Tensor


def simulated(said: np.ndarray, num_classes: int, rng: np.random.Generator, error_rate: float = 0.25) -> torch.Tensor:
    """Log-probabilities of a head that hears `said`, float32 (T, C)."""
    heard: list[int] = []
    for sound in said:
        fate = rng.random() / error_rate
        if fate < 0.6:
            heard.append(int(rng.integers(1, num_classes)))
        elif fate >= 0.8:
            heard.append(int(sound))
        if 0.8 <= fate < 1:
            heard.append(int(rng.integers(1, num_classes)))
    speech = max(len(heard), int(len(said) / SOUNDS_A_SECOND * FRAMES_A_SECOND))
    logits_TC = rng.normal(0, 1, (speech + 2 * _PAUSE, num_classes))
    logits_TC[:, 0] += 11
    places = _PAUSE + np.sort(rng.choice(speech, len(heard), replace=False))
    logits_TC[places, heard] += rng.normal(16, 2, len(heard))
    for place, sound in zip(np.linspace(_PAUSE, _PAUSE + speech - 1, len(said)).astype(int), said, strict=True):
        logits_TC[place - 1 : place + 2, sound] += rng.normal(4, 2)
    return torch.from_numpy(logits_TC).log_softmax(dim=1).float()


def read_emissions(path: Path) -> tuple[list[HeardClip], tuple[str, ...]]:
    """Clips and alphabet of an `.npz`: `log_probs` (T of all, C), `num_frames` and `texts` (B), `symbols` (C - 1)."""
    with np.load(path) as arrays:
        frames = torch.from_numpy(arrays["log_probs"]).float().split(arrays["num_frames"].tolist())
        clips = [HeardClip(str(text), each_TC) for text, each_TC in zip(arrays["texts"], frames, strict=True)]
        return clips, tuple(map(str, arrays["symbols"]))
