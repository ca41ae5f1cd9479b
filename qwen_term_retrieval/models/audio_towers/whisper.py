"""Whisper's encoder (Radford et al. 2022): two convolutions over mel frames, a transformer, 50 frames a second."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel, WhisperConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from qwen_term_retrieval.models.audio_towers.mel import HOP_SAMPLES, SAMPLING_RATE, log_mel, num_mel_frames
from qwen_term_retrieval.models.audio_towers.tower import AudioTower, frame_mask, register_audio_tower


@register_audio_tower
class WhisperTower(AudioTower):
    """Equals the stock encoder at 30 s with an attention mask, which the stock `forward` does not take."""

    model_types: ClassVar[tuple[str, ...]] = ("whisper",)
    encoder_class: ClassVar[type[PreTrainedModel]] = WhisperEncoder
    config_class: ClassVar[type[PreTrainedConfig]] = WhisperConfig
    weight_prefixes: ClassVar[tuple[str, ...]] = ("model.encoder.", "encoder.", "")
    frame_rate = 50.0
    never_trained = ("embed_positions.weight",)

    @property
    def max_seconds(self) -> float:
        return self.encoder.config.max_source_positions * 2 * HOP_SAMPLES / SAMPLING_RATE

    @property
    def input_layer(self) -> nn.Module:
        return self.encoder.conv1

    def num_frames(self, num_samples_B: torch.Tensor) -> torch.Tensor:
        return (num_mel_frames(num_samples_B) - 1) // 2 + 1

    def mel(self, pcm_BS: torch.Tensor, num_samples_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.encoder.config
        max_frames = config.max_source_positions * 2
        return log_mel(pcm_BS, num_samples_B, num_mel_bins=config.num_mel_bins, max_frames=max_frames)

    def encode(self, mel: torch.Tensor, num_mel_B: torch.Tensor, num_layers: int = 1) -> list[torch.Tensor]:
        encoder = self.encoder
        hidden_BHT = F.gelu(encoder.conv1(mel.to(encoder.conv1.weight.dtype)))
        hidden_BTH = F.gelu(encoder.conv2(hidden_BHT)).transpose(1, 2)
        hidden_BTH = hidden_BTH + encoder.embed_positions.weight[: hidden_BTH.shape[1]]
        hidden_BTH = F.dropout(hidden_BTH, p=encoder.dropout if self.training else 0.0, training=self.training)
        valid_BT = frame_mask((num_mel_B - 1) // 2 + 1, hidden_BTH.shape[1])
        mask = create_bidirectional_mask(
            config=encoder.config, inputs_embeds=hidden_BTH, attention_mask=valid_BT.to(torch.long)
        )
        return [self._finish(layer_BTH) for layer_BTH in self.run_layers(hidden_BTH, num_layers, mask)]

    def _finish(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        return self.encoder.layer_norm(hidden_BTH)
