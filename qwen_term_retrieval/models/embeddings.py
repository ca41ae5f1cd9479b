"""Spans of clips, and what `TermRetrievalModel.encode_audio` gives back for them.

Shapes: B clips, W windows of a clip, P spans of all clips, D embedding, U sub-frames, C classes of the phoneme head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence


class Spans(NamedTuple):
    """Spans of clips in encoder frames, under the names that the model's `forward` has for them.

    clip_index_P: int64, the clip of each. start_P, end_P: edges, frame i covering i … i + 1.
    """

    clip_index_P: torch.Tensor
    start_P: torch.Tensor
    end_P: torch.Tensor

    def to(self, device: torch.device) -> Spans:
        return Spans(*(values.to(device) for values in self))

    @classmethod
    def whole_clips(cls, num_frames_B: torch.Tensor) -> Spans:
        """One span over all of each clip."""
        clip_index_B = torch.arange(len(num_frames_B), device=num_frames_B.device)
        return cls(clip_index_B, torch.zeros_like(num_frames_B), num_frames_B)


@dataclass(frozen=True)
class AudioEmbeddings:
    """Windows of B clips, up to W each; spans and mask on the CPU.

    Attributes:
        vectors: (B, W, D), unit norm, zero where there is no window.
        spans: (B, W, 2), start and end in seconds.
        mask: (B, W), true where there is a window.
        log_probs: (B, U, C), what the phoneme head hears in each of the U sub-frames, where it was asked.
        num_sub_frames: (B,), how many of them are each clip's; behind them is anything.
    """

    vectors: torch.Tensor
    spans: torch.Tensor
    mask: torch.Tensor
    log_probs: torch.Tensor | None = None
    num_sub_frames: torch.Tensor | None = None

    @classmethod
    def from_clips(cls, vectors: Sequence[torch.Tensor], spans: Sequence[torch.Tensor]) -> AudioEmbeddings:
        """Join the windows of single clips, (W, D) and (W, 2) each; at least one column, even where no clip has any."""
        counts_B = torch.tensor([len(vectors_WD) for vectors_WD in vectors])
        width = max(1, int(counts_B.max()))
        empty = (0, 0, 0, width - int(counts_B.max()))
        return cls(
            vectors=F.pad(pad_sequence(list(vectors), batch_first=True), empty),
            spans=F.pad(pad_sequence(list(spans), batch_first=True), empty),
            mask=torch.arange(width) < counts_B[:, None],
        )
