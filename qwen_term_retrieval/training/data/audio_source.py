"""Where the frames of a batch come from: the audio itself, or the cache of a frozen tower.

Both are callables for the collator: `rows -> (audio inputs of the model's forward, encoder frames of each clip)`, on
the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch

from qwen_term_retrieval.audio.collate import PcmBuffers
from qwen_term_retrieval.augmentation.distortion import distort
from qwen_term_retrieval.augmentation.visits import Augmentation, DistortedCopies
from qwen_term_retrieval.models.frame_cache import FrameCache, clip_digests
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.packs.clip_reader import ClipReader
from qwen_term_retrieval.training.data.frame_sharing import frames_by_all_ranks


@dataclass
class PcmFrames:
    """int16 audio to the device; mel and tower run there.

    Args:
        clips: of the training set.
        num_frames: samples (B,) to encoder frames (B,).
        augmentation: distorts rows that its `visit` has prepared.
        on_device: leave that to `distort_inputs`, when the batch has come to the device.
    """

    clips: ClipReader
    num_frames: Callable[[torch.Tensor], torch.Tensor]
    augmentation: Augmentation | None = None
    on_device: bool = False
    buffers: PcmBuffers = field(default_factory=PcmBuffers)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        if self.augmentation is None:
            pcm_BS, num_samples_B = self.clips.gather([row["clip"] for row in rows], buffers=self.buffers)
            return {"pcm_BS": pcm_BS, "num_samples_B": num_samples_B}, self.num_frames(num_samples_B)
        visits = [(row["clip"], row["distortion"]) for row in rows]
        pcm_BS, num_samples_B, distortions = self.augmentation.load(visits)
        inputs: dict[str, Any] = {"pcm_BS": pcm_BS, "num_samples_B": num_samples_B, "distortions": distortions}
        return inputs if self.on_device else distort_inputs(inputs), self.num_frames(num_samples_B)


def distort_inputs(audio_inputs: dict[str, Any]) -> dict[str, Any]:
    """The model's audio inputs of a batch, distorted where they lie, if they are still to be."""
    if "distortions" not in audio_inputs:
        return audio_inputs
    inputs = dict(audio_inputs)
    inputs["pcm_BS"], _ = distort(inputs["pcm_BS"], inputs["num_samples_B"], inputs.pop("distortions"))
    return inputs


@dataclass
class CachedFrames:
    """Frames of a frozen tower, read from the cache by row number.

    Args:
        cache: of the clips, or of `DistortedCopies` of them.
        num_clips: in the training set, as `copy` counts in steps of it; only for rows that have one.
    """

    cache: FrameCache
    num_clips: int = 0

    def __call__(self, rows: Sequence[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        frames_BTH, num_frames_B = self.cache.get([row["clip"] + self.num_clips * row.get("copy", 0) for row in rows])
        return {"frames_BTH": frames_BTH, "num_frames_B": num_frames_B}, num_frames_B


def cached_frames(
    model: TermRetrievalModel,
    rows: datasets.Dataset,
    augmentation: Augmentation | None = None,
    cache_dir: str | Path | None = None,
    *,
    show_progress: bool = True,
) -> FrameCache:
    """Frames of a frozen tower for every row, and with an augmentation for the distorted copies of every row.

    Every rank calls it and computes its share.
    """
    keys = rows["key"][:]
    clips: Any = rows
    digests_of = partial(clip_digests, rows, keys)
    if augmentation is not None:
        clips = DistortedCopies(augmentation)
        keys, digests_of = keys * (len(clips) // len(rows)), clips.digests
    return frames_by_all_ranks(model, clips, keys, digests_of, cache_dir, show_progress=show_progress)
