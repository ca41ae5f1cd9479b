"""Fast Conformer (Rekesh et al. 2023) on padded batches: one run through its layers, and batch normalisation by frames.

The batch normalisation of torch counts padding as if it were speech, and each rank's batch for itself: in training the
same clips come out differently beside a longer one, and on two processes. `FrameBatchNorm` takes mean and variance
over the frames that belong to clips, of all ranks. In evaluation, and by the names of its weights, it is `BatchNorm1d`.

Shapes: B clips, T frames, C channels, M mel frames, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from qwen_term_retrieval.distributed import world_size
from qwen_term_retrieval.models.audio_towers.tower import frame_mask

RunLayers = Callable[..., list[torch.Tensor]]


class FrameBatchNorm(nn.BatchNorm1d):
    """`BatchNorm1d` of (B, C, T) whose statistics are those of valid frames, over all ranks.

    `frames_of` says which frames are valid before the encoder runs. A batch that is not finite leaves the running
    statistics as they are, and a layer that is computed again in the backward pass (checkpointing) counts once.
    """

    _valid_BT: torch.Tensor | None = None
    _is_counted = False

    def forward(self, hidden_BCT: torch.Tensor) -> torch.Tensor:
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(hidden_BCT)
        valid_BT = self._valid_BT
        if valid_BT is None or valid_BT.shape != hidden_BCT.shape[::2]:
            valid_BT = hidden_BCT.new_ones(hidden_BCT.shape[::2], dtype=torch.bool)
        normal_BCT, mean_C, var_C, count = _Normalize.apply(hidden_BCT, valid_BT, self.eps)
        # A pass without a graph is done again with one: of GradCache, or of a checkpoint that is reentrant.
        if torch.is_grad_enabled() and not self._is_counted:
            self._note(mean_C, var_C, count)
        weight_C1, bias_C1 = self.weight[:, None], self.bias[:, None]
        # Not on the padding, whose gradient nobody asks for.
        return (normal_BCT * weight_C1 + bias_C1) * valid_BT[:, None].to(normal_BCT.dtype)

    @torch.no_grad()
    def _note(self, mean_C: torch.Tensor, var_C: torch.Tensor, count: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        self._is_counted = self._valid_BT is not None
        finite = mean_C.isfinite().all() & var_C.isfinite().all()
        unbiased_C = var_C * (count / (count - 1).clamp(min=1))
        for running_C, values_C in ((self.running_mean, mean_C), (self.running_var, unbiased_C)):
            running_C.copy_(
                torch.where(finite, torch.lerp(running_C, values_C.to(running_C), self.momentum), running_C)
            )
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(finite)


class _Normalize(torch.autograd.Function):
    """(x - mean) / std over valid frames of all ranks; also mean, variance and how many frames there were."""

    @staticmethod
    def forward(ctx, hidden_BCT, valid_BT, eps):
        weight_B1T = valid_BT[:, None].to(torch.promote_types(hidden_BCT.dtype, torch.float32))
        values_BCT = hidden_BCT * weight_B1T
        count, mean_C, squares_C = _over_ranks(
            weight_B1T.sum(), values_BCT.sum((0, 2)), lambda mean_C: _squares(values_BCT, mean_C, weight_B1T)
        )
        var_C = squares_C / count
        scale_C = (var_C + eps).rsqrt()
        normal_BCT = (values_BCT - mean_C[:, None]) * scale_C[:, None] * weight_B1T
        ctx.save_for_backward(normal_BCT, weight_B1T, scale_C, count)
        ctx.dtype = hidden_BCT.dtype
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return normal_BCT.to(hidden_BCT.dtype), mean_C, var_C, count

    @staticmethod
    def backward(ctx, grad_BCT, *_):
        normal_BCT, weight_B1T, scale_C, count = ctx.saved_tensors
        grad_BCT = grad_BCT * weight_B1T
        sums_2C = torch.stack([grad_BCT.sum((0, 2)), (grad_BCT * normal_BCT).sum((0, 2))])
        if world_size() > 1:
            dist.all_reduce(sums_2C)
        mean_2C1 = (sums_2C / count)[..., None]
        grad_BCT = (grad_BCT - mean_2C1[0] - normal_BCT * mean_2C1[1]) * scale_C[:, None] * weight_B1T
        return grad_BCT.to(ctx.dtype), None, None


def _squares(values_BCT: torch.Tensor, mean_C: torch.Tensor, weight_B1T: torch.Tensor) -> torch.Tensor:
    return ((values_BCT - mean_C[:, None]) * weight_B1T).square().sum((0, 2))


def _over_ranks(
    count: torch.Tensor, sum_C: torch.Tensor, squares_around: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames, mean and squared distances from it, of all ranks: two passes, which no large mean makes inexact."""
    if world_size() == 1:
        count = count.clamp(min=1)
        mean_C = sum_C / count
        return count, mean_C, squares_around(mean_C)
    totals = torch.cat([count[None], sum_C])
    dist.all_reduce(totals)
    count = totals[0].clamp(min=1)
    mean_C = totals[1:] / count
    squares_C = squares_around(mean_C)
    dist.all_reduce(squares_C)
    return count, mean_C, squares_C


def use_frame_norms(encoder: Any) -> None:
    """Let an encoder's layers normalise by frames; weights and their names stay."""
    for layer in encoder.layers:
        norm = layer.conv.norm
        if type(norm) is nn.BatchNorm1d:
            own = FrameBatchNorm(norm.num_features, norm.eps, norm.momentum, device=norm.weight.device)
            if norm.weight.device.type != "meta":
                own.load_state_dict(norm.state_dict())
            layer.conv.norm = own


def frames_of(encoder: Any, valid_BT: torch.Tensor) -> None:
    """Tell the layers' batch normalisation which frames belong to clips, until it is told again."""
    for layer in encoder.layers:
        norm = layer.conv.norm
        norm._valid_BT, norm._is_counted = valid_BT, False


def encode_mel(
    encoder: Any,
    mel_BMF: torch.Tensor,
    num_mel_B: torch.Tensor,
    run_layers: RunLayers,
    *,
    change: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Run `ParakeetEncoder` on a padded batch, no layer dropped.

    Args:
        encoder: of transformers.
        mel_BMF: mel frames, zero behind a clip's last.
        num_mel_B: how many are each clip's.
        run_layers: called with hidden_BTH, `attention_mask` and `position_embeddings`.
        change: what is done to the frames that come out of the subsampling.

    Returns:
        What `run_layers` gives, and valid_BT.
    """
    valid_BM = frame_mask(num_mel_B, mel_BMF.shape[1])
    hidden_BTH = encoder.subsampling(mel_BMF.to(encoder.dtype), valid_BM)
    if change is not None:
        hidden_BTH = change(hidden_BTH)
    hidden_BTH = hidden_BTH * encoder.input_scale
    positions = F.dropout(encoder.encode_positions(hidden_BTH), encoder.dropout_positions, encoder.training)
    valid_BT = encoder._get_output_attention_mask(valid_BM, target_length=hidden_BTH.shape[1])
    frames_of(encoder, valid_BT)
    mask_B1TT = valid_BT[:, None, None] & valid_BT[:, None, :, None]
    hidden_BTH = F.dropout(hidden_BTH, encoder.dropout, encoder.training)
    return run_layers(hidden_BTH, attention_mask=mask_B1TT, position_embeddings=positions), valid_BT
