"""What Qwen3-Omni's and Qwen3-ASR's encoders share: chunks of one second, and attention windows of eight.

Three strided convolutions turn each chunk of 100 mel frames into 13 encoder frames; positions begin anew in every
chunk. The valid frames of all clips are packed into one row, which the layers attend in windows: with FlashAttention
in one call, else in one a window.

Shapes: B clips, Q chunks of all clips, M mel bins, T encoder frames, R valid frames of all clips, H hidden.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from qwen_term_retrieval.models.audio_towers.mel import HOP_SAMPLES, reflected_log_mel
from qwen_term_retrieval.models.audio_towers.tower import AudioTower, frame_mask

CHUNK_FRAMES = 100


def after_convolutions(lengths: torch.Tensor) -> torch.Tensor:
    """Frames that three convolutions of stride two leave of so many."""
    for _ in range(3):
        lengths = (lengths - 1) // 2 + 1
    return lengths


class Qwen3Tower(AudioTower):
    """A subclass says how its encoder ends, and what its stock path does to short clips."""

    frame_rate = 13.0
    max_seconds = 300.0
    pads_short_clips = True
    """Whether the mel frames of a clip of less than a chunk are padded to one."""
    silence_up_to_samples = 0
    """Up to what length silence follows the samples of a shorter clip."""

    @property
    def input_layer(self) -> nn.Module:
        return self.encoder.conv2d1

    def num_frames(self, num_samples_B: torch.Tensor) -> torch.Tensor:
        return self._encoder_frames(num_samples_B // HOP_SAMPLES)

    def _encoder_frames(self, num_mel_B: torch.Tensor) -> torch.Tensor:
        per_chunk = int(after_convolutions(torch.tensor(CHUNK_FRAMES)))
        return num_mel_B // CHUNK_FRAMES * per_chunk + after_convolutions(num_mel_B % CHUNK_FRAMES)

    def mel(self, pcm_BS: torch.Tensor, num_samples_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        num_mel_bins = self.encoder.config.num_mel_bins
        return reflected_log_mel(
            pcm_BS, num_samples_B, num_mel_bins=num_mel_bins, min_samples=self.silence_up_to_samples
        )

    def encode(self, mel: torch.Tensor, num_mel_B: torch.Tensor, num_layers: int = 1) -> list[torch.Tensor]:
        hidden_BTH, num_frames_B = self._convolve(mel, num_mel_B), self._encoder_frames(num_mel_B)
        grid = hidden_BTH.shape[:2]
        valid_R = frame_mask(num_frames_B, grid[1]).flatten().nonzero()[:, 0]
        windows = self._window_lengths(num_frames_B.tolist())
        edges = F.pad(torch.tensor(windows, device=mel.device).cumsum(0, dtype=torch.int32), (1, 0))
        layers = self.run_layers(
            hidden_BTH.flatten(0, 1)[valid_R], num_layers, cu_seqlens=edges, max_seqlen=max(windows)
        )
        finished = [self._finish(layer_RH) for layer_RH in layers]
        return [
            layer_RH.new_zeros(grid.numel(), layer_RH.shape[1]).index_copy(0, valid_R, layer_RH).unflatten(0, grid)
            for layer_RH in finished
        ]

    def _convolve(self, mel_BMT: torch.Tensor, num_mel_B: torch.Tensor) -> torch.Tensor:
        encoder = self.encoder
        mel_BMT = F.pad(mel_BMT, (0, -mel_BMT.shape[-1] % CHUNK_FRAMES)).to(encoder.conv2d1.weight.dtype)
        hidden = mel_BMT.unflatten(-1, (-1, CHUNK_FRAMES)).transpose(1, 2).flatten(0, 1).unsqueeze(1)
        # A lone short clip that the stock path does not pad ends in zeros for every convolution, not in their outputs.
        border = num_mel_B.clamp(min=CHUNK_FRAMES if self.pads_short_clips else 0, max=CHUNK_FRAMES)
        border = border.repeat_interleave(mel_BMT.shape[-1] // CHUNK_FRAMES)
        for convolution in (encoder.conv2d1, encoder.conv2d2, encoder.conv2d3):
            hidden, border = F.gelu(convolution(hidden)), (border - 1) // 2 + 1
            behind = torch.arange(hidden.shape[-1], device=hidden.device) >= border[:, None]
            hidden = hidden.masked_fill(behind[:, None, None], 0.0)
        hidden_QTH = encoder.conv_out(hidden.permute(0, 3, 1, 2).flatten(2))
        positions_TH = encoder.positional_embedding.positional_embedding[: hidden_QTH.shape[1]]
        return (hidden_QTH + positions_TH.to(hidden_QTH.dtype)).unflatten(0, (len(mel_BMT), -1)).flatten(1, 2)

    def _window_lengths(self, num_frames: list[int]) -> list[int]:
        """Lengths of the attention windows of all clips, clip by clip."""
        size = int(self._encoder_frames(torch.tensor(self.encoder.config.n_window_infer)))
        return [min(size, frames - start) for frames in num_frames for start in range(0, frames, size)]

    def _finish(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        return self.encoder.ln_post(hidden_RH)
