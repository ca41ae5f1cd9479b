"""Parakeet's encoder and NEST's (Fast Conformer, Rekesh et al. 2023): 12.5 frames a second."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import ParakeetEncoder, ParakeetEncoderConfig

from qwen_term_retrieval.models.audio_towers.fast_conformer import encode_mel, use_frame_norms
from qwen_term_retrieval.models.audio_towers.mel import HOP_SAMPLES
from qwen_term_retrieval.models.audio_towers.normalized_mel import parakeet_mel
from qwen_term_retrieval.models.audio_towers.tower import AudioTower, register_audio_tower


@register_audio_tower
class ParakeetTower(AudioTower):
    """Of a frozen tower, or one with LoRA, batch normalisation stays as it was trained; of a trained one it learns."""

    model_types = ("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt", "parakeet_encoder", "nest")
    encoder_class = ParakeetEncoder
    config_class = ParakeetEncoderConfig
    weight_prefixes = ("encoder.", "model.encoder.", "")
    frame_rate = 12.5
    lora_targets = r"layers\.\d+\.(self_attn\.(q|k|v|o)_proj|feed_forward[12]\.linear[12])"
    min_samples = 2 * HOP_SAMPLES

    def __init__(self, encoder_config: dict[str, Any], attn_implementation: str | None = None):
        super().__init__(encoder_config, attn_implementation)
        use_frame_norms(self.encoder)

    @classmethod
    def encoder_config_of(cls, checkpoint_config: dict[str, Any]) -> dict[str, Any]:
        return checkpoint_config.get("encoder_config", checkpoint_config)

    @property
    def max_seconds(self) -> float:
        return self.encoder.config.max_position_embeddings / self.frame_rate

    @property
    def input_layer(self) -> nn.Module:
        return self.encoder.subsampling.linear

    def train(self, mode: bool = True) -> ParakeetTower:
        super().train(mode)
        for layer in self.layers:
            norm = layer.get_submodule("conv.norm")
            norm.train(mode and norm.get_parameter("weight").requires_grad)
        return self

    def num_frames(self, num_samples_B: torch.Tensor) -> torch.Tensor:
        return self.encoder._get_subsampling_output_length(num_samples_B // HOP_SAMPLES).long()

    def mel(self, pcm_BS: torch.Tensor, num_samples_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return parakeet_mel(pcm_BS, num_samples_B, num_mel_bins=self.encoder.config.num_mel_bins)

    def encode(self, mel: torch.Tensor, num_mel_B: torch.Tensor, num_layers: int = 1) -> list[torch.Tensor]:
        def run_layers(hidden_BTH: torch.Tensor, **inputs: torch.Tensor) -> list[torch.Tensor]:
            return self.run_layers(hidden_BTH, num_layers, **inputs)

        return encode_mel(self.encoder, mel, num_mel_B, run_layers)[0]
