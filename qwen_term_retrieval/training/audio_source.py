"""Where the frames of a batch come from: the audio itself, or the cache of a frozen tower.

Both are callables for the collator: `rows -> (audio inputs of the model's forward, encoder frames of each clip)`, on
the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.models.feature_cache import FeatureCache


@dataclass
class PcmFrames:
    """int16 audio to the device; mel and tower run there.

    `num_frames` maps samples (B,) to encoder frames (B,).
    """

    num_frames: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, rows: Sequence[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        pcm_BS, num_samples_B = pad_pcm([row["audio"].pcm for row in rows])
        return {"pcm_BS": pcm_BS, "num_samples_B": num_samples_B}, self.num_frames(num_samples_B)


@dataclass
class CachedFrames:
    """Frames of a frozen tower, read from the cache by row number."""

    cache: FeatureCache

    def __call__(self, rows: Sequence[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        features_BTH, num_frames_B = self.cache.get([row["clip"] for row in rows])
        return {"features_BTH": features_BTH, "num_frames_B": num_frames_B}, num_frames_B
