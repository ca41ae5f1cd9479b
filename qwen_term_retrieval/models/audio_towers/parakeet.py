"""Parakeet's encoder (Fast Conformer, Rekesh et al. 2023): 12.5 frames a second."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ParakeetEncoder, ParakeetEncoderConfig

from qwen_term_retrieval.models.audio_towers.mel import HOP_SAMPLES
from qwen_term_retrieval.models.audio_towers.normalized_mel import parakeet_mel
from qwen_term_retrieval.models.audio_towers.tower import AudioTower, frame_mask, register_audio_tower


@register_audio_tower
class ParakeetTower(AudioTower):
    """Batch normalisation stays as it was trained: with a batch's own statistics, clips would depend on each other."""

    model_types = ("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt", "parakeet_encoder")
    encoder_class = ParakeetEncoder
    config_class = ParakeetEncoderConfig
    weight_prefixes = ("encoder.", "model.encoder.", "")
    frame_rate = 12.5
    lora_targets = r"layers\.\d+\.(self_attn\.(q|k|v|o)_proj|feed_forward[12]\.linear[12])"
    min_samples = 2 * HOP_SAMPLES

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
            layer.get_submodule("conv.norm").eval()
        return self

    def num_frames(self, num_samples_B: torch.Tensor) -> torch.Tensor:
        return self.encoder._get_subsampling_output_length(num_samples_B // HOP_SAMPLES).long()

    def mel(self, pcm_BS: torch.Tensor, num_samples_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return parakeet_mel(pcm_BS, num_samples_B, num_mel_bins=self.encoder.config.num_mel_bins)

    def encode(self, mel: torch.Tensor, num_mel_B: torch.Tensor, num_layers: int = 1) -> list[torch.Tensor]:
        encoder, valid_BM = self.encoder, frame_mask(num_mel_B, mel.shape[1])
        hidden_BTH = encoder.subsampling(mel.to(encoder.dtype), valid_BM) * encoder.input_scale
        positions = F.dropout(encoder.encode_positions(hidden_BTH), encoder.dropout_positions, self.training)
        valid_BT = encoder._get_output_attention_mask(valid_BM, target_length=hidden_BTH.shape[1])
        mask_B1TT = valid_BT[:, None, None] & valid_BT[:, None, :, None]
        hidden_BTH = F.dropout(hidden_BTH, encoder.dropout, self.training)
        return self.run_layers(hidden_BTH, num_layers, attention_mask=mask_B1TT, position_embeddings=positions)
