"""What `TermRetrievalModel.encode_audio` gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence


@dataclass
class AudioEmbeddings:
    """Windows of B clips, up to W each; spans and mask on the CPU.

    Attributes:
        vectors: (B, W, D), unit norm, zero where there is no window.
        spans: (B, W, 2), start and end in seconds.
        mask: (B, W), true where there is a window.
    """

    vectors: torch.Tensor
    spans: torch.Tensor
    mask: torch.Tensor

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
