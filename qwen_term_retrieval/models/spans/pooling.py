"""Ordered pyramid pooling: a span of frames to one vector that remembers the order of its sounds.

The means over the whole span, its halves, its quarters … are concatenated. All spans of all clips come out of one
prefix sum with linear interpolation, so edges may be fractional, thousands of windows cost one pass over the
frames, and gradients reach the frames. Temporal pyramids: Lazebnik et al. 2006 (space), Gong et al. 2014 (time).

Shapes: B clips, T frames, H hidden, P spans, E edges, K segments; R runs, S frames of all runs, G segments of all runs,
E frames of all segments.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch.nn import functional as F


@functools.lru_cache(maxsize=32)
def _pyramid(segments: tuple[int, ...]) -> tuple[list[float], list[int], list[int], list[int]]:
    """The distinct edges of all segments as fractions of the span; for each segment its two edges and its level."""
    bounds = [(Fraction(k, level), Fraction(k + 1, level), level) for level in segments for k in range(level)]
    edges = sorted({edge for low, high, _ in bounds for edge in (low, high)})
    low_K = [edges.index(low) for low, _, _ in bounds]
    high_K = [edges.index(high) for _, high, _ in bounds]
    return [float(edge) for edge in edges], low_K, high_K, [level for _, _, level in bounds]


def pool_pyramid(
    frames_BTH: torch.Tensor,
    num_frames_B: torch.Tensor,
    clip_index_P: torch.Tensor,
    start_P: torch.Tensor,
    end_P: torch.Tensor,
    segments: Sequence[int] = (1, 2, 4),
) -> torch.Tensor:
    """Means over the segments of every span.

    Args:
        frames_BTH: frames; what lies behind a clip's last frame is ignored.
        num_frames_B: valid frames of each clip.
        clip_index_P: the clip of each span.
        start_P, end_P: edges in frames, fractional ones allowed (frame i covers i … i + 1). They are moved into the
            clip, and a span narrower than one frame is widened to one.
        segments: numbers of equal parts, coarse to fine.

    Returns:
        (P, sum(segments) * H), float32 (float64 for float64 frames), in the order of `segments`.
    """
    edges, low_K, high_K, level_K = _pyramid(tuple(segments))
    device, num_positions = frames_BTH.device, frames_BTH.shape[1] + 1
    with torch.autocast(device.type, enabled=False):
        frames_BTH = frames_BTH if frames_BTH.dtype == torch.float64 else frames_BTH.float()
        dtype = frames_BTH.dtype
        valid_BT1 = (torch.arange(num_positions - 1, device=device) < num_frames_B[:, None]).unsqueeze(-1)
        frames_BTH = frames_BTH.masked_fill(~valid_BT1, 0.0)
        # Without the mean, a sum over 30 s would leave a one-frame difference three digits. Sums behind a clip's end
        # are wrong, and never read with a weight above zero.
        mean_BH = frames_BTH.sum(1) / num_frames_B[:, None].clamp(min=1).to(dtype)
        prefix_QH = F.pad((frames_BTH - mean_BH[:, None]).cumsum(1), (0, 0, 1, 0)).flatten(0, 1)

        start_P, length_P = _fit_spans(start_P.to(dtype), end_P.to(dtype), num_frames_B[clip_index_P].to(dtype))
        position_PE = start_P[:, None] + length_P[:, None] * torch.tensor(edges, device=device, dtype=dtype)
        left_PE = position_PE.floor().long().clamp(max=num_positions - 1)
        right_PE = (left_PE + 1).clamp(max=num_positions - 1)
        offset_P1 = (clip_index_P * num_positions)[:, None]
        sum_PEH = torch.lerp(
            _rows(prefix_QH, offset_P1 + left_PE),
            _rows(prefix_QH, offset_P1 + right_PE),
            (position_PE - left_PE)[..., None].to(dtype),
        )
        width_PK = length_P[:, None] / torch.tensor(level_K, device=device, dtype=dtype)
        pooled_PKH = (sum_PEH[:, high_K] - sum_PEH[:, low_K]) / width_PK[..., None]
        return (pooled_PKH + mean_BH[clip_index_P][:, None]).flatten(1)


def pool_runs(frames_SH: torch.Tensor, length_R: torch.Tensor, segments: Sequence[int] = (1, 2, 4)) -> torch.Tensor:
    """`pool_pyramid` of whole runs, which lie one behind another in one row of frames: for many short ones.

    Args:
        frames_SH: all frames.
        length_R: int64, frames of each run, at least 1; they add up to S.
        segments: numbers of equal parts, coarse to fine.

    Returns:
        (R, sum(segments) * H), float32 (float64 for float64 frames).
    """
    device, num_runs = length_R.device, len(length_R)
    frames_SH = frames_SH.to(torch.promote_types(frames_SH.dtype, torch.float32))
    level_G = torch.tensor([level for level in segments for _ in range(level)], device=device).repeat(num_runs)
    part_G = torch.tensor([part for level in segments for part in range(level)], device=device).repeat(num_runs)
    length_G, start_G = (
        values_R.repeat_interleave(sum(segments)) for values_R in (length_R, length_R.cumsum(0) - length_R)
    )
    # Counted in a level-th of a frame, every segment is as long as its run, and begins at a whole number.
    low_G = length_G * part_G
    first_G = low_G // level_G
    count_G = (low_G + length_G + level_G - 1) // level_G - first_G
    offset_G = count_G.cumsum(0) - count_G
    segment_E = torch.arange(len(count_G), device=device).repeat_interleave(count_G)
    frame_E = torch.arange(len(segment_E), device=device) + (first_G - offset_G)[segment_E]
    level_E, low_E, length_E = (values_G[segment_E] for values_G in (level_G, low_G, length_G))
    inside_E = torch.minimum((frame_E + 1) * level_E, low_E + length_E) - torch.maximum(frame_E * level_E, low_E)
    weight_E = inside_E.to(frames_SH.dtype) / length_E
    rows_E = start_G[segment_E] + frame_E
    pooled_GH = F.embedding_bag(rows_E, frames_SH, offset_G, mode="sum", per_sample_weights=weight_E)
    return pooled_GH.unflatten(0, (num_runs, -1)).flatten(1)


def _rows(table_QH: torch.Tensor, index_PE: torch.Tensor) -> torch.Tensor:
    """`index_select`, because its backward pass is several times faster on CPU than that of indexing."""
    return table_QH.index_select(0, index_PE.flatten()).unflatten(0, index_PE.shape)


def _fit_spans(
    start_P: torch.Tensor, end_P: torch.Tensor, num_frames_P: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Starts and lengths of the spans, at least one frame long and within the clip."""
    zero = torch.zeros_like(num_frames_P)
    start_P, end_P = torch.clamp(start_P, zero, num_frames_P), torch.clamp(end_P, zero, num_frames_P)
    length_P = torch.minimum((end_P - start_P).clamp(min=1.0), num_frames_P.clamp(min=1.0))
    centre_P = (start_P + end_P) / 2
    start_P = torch.where(end_P - start_P < 1.0, centre_P - length_P / 2, start_P)
    return torch.clamp(start_P, zero, (num_frames_P - length_P).clamp(min=0.0)), length_P
