"""Attention pooling: which frames of a span matter is learned, what order they come in is kept.

Every head scores every frame and weighs its share of the channels by the softmax of its scores within the span, or
within each segment of the span's pyramid. A weighted mean is the mean of weighted frames over the mean of weights, so
all spans of all clips still come out of one prefix sum, without a loop. Before anything is learned all frames weigh
the same, and the result is the plain pyramid's.

Shapes: B clips, T frames, H hidden, A heads, P spans, K segments.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from qwen_term_retrieval.models.spans.pooling import pool_pyramid

# Scores are kept within ± this: weights that differ by more than e^16 would be lost in one prefix sum.
_MAX_SCORE = 8.0


class AttentionPooling(nn.Module):
    """Spans of frames to weighted means.

    Args:
        hidden_size: channels of a frame.
        segments: as `pool_pyramid` takes them; `(1,)` for one weighted mean a span.
        num_heads: each weighs an equal share of the channels.

    Raises:
        ValueError: the channels cannot be shared equally.
    """

    def __init__(self, hidden_size: int, segments: Sequence[int], num_heads: int = 4):
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"{num_heads} heads of attention pooling cannot share {hidden_size} channels equally")
        self.segments = tuple(segments)
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(hidden_size)
        # A parameter, because the initialisation of a `PreTrainedModel` makes the weights of layers random.
        self.queries_AH = nn.Parameter(torch.zeros(num_heads, hidden_size))

    def forward(
        self,
        frames_BTH: torch.Tensor,
        num_frames_B: torch.Tensor,
        clip_index_P: torch.Tensor,
        start_P: torch.Tensor,
        end_P: torch.Tensor,
    ) -> torch.Tensor:
        """Weighted means (P, sum(segments) * H) of spans, taken and laid out as by `pool_pyramid`."""
        # `pool_pyramid` leaves out what lies behind a clip's end, but where that is NaN so is 0 times its gradient.
        padding_BT = torch.arange(frames_BTH.shape[1], device=frames_BTH.device) >= num_frames_B[:, None]
        frames_BTH = frames_BTH.masked_fill(padding_BT[..., None], 0.0)
        score_BTA = self.norm(frames_BTH.to(self.norm.weight.dtype)) @ self.queries_AH.T
        with torch.autocast(frames_BTH.device.type, enabled=False):
            # Double precision, because light frames beside heavy ones must survive the sum; Apple's GPU has none.
            dtype = torch.float32 if frames_BTH.device.type == "mps" else torch.float64
            weight_BTA = (_MAX_SCORE * torch.tanh(score_BTA.to(dtype) / _MAX_SCORE)).exp()
            frames_BTAH = frames_BTH.to(dtype).unflatten(-1, (self.num_heads, -1))
            weighted_BTH = (frames_BTAH * weight_BTA.unsqueeze(-1)).flatten(-2)
            joined_BTH = torch.cat([weighted_BTH, weight_BTA], dim=-1)
            pooled_P = pool_pyramid(joined_BTH, num_frames_B, clip_index_P, start_P, end_P, self.segments)
            pooled_PKH = pooled_P.unflatten(-1, (sum(self.segments), -1))
            mean_PKAH = pooled_PKH[..., : -self.num_heads].unflatten(-1, (self.num_heads, -1))
            # All weights are above e^-8; a clip without a frame has none.
            mean_PKAH = mean_PKAH / pooled_PKH[..., -self.num_heads :].unsqueeze(-1).clamp(min=1e-6)
            out_dtype = torch.float64 if frames_BTH.dtype == torch.float64 else torch.float32
            return mean_PKAH.flatten(1).to(out_dtype)
