"""Qwen2-Audio's encoder (Chu et al. 2024): Whisper-large-v3's with pairs of frames averaged, 25 a second."""

from __future__ import annotations

import torch
from transformers import Qwen2AudioEncoderConfig
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from qwen_term_retrieval.models.audio_towers.tower import register_audio_tower
from qwen_term_retrieval.models.audio_towers.whisper import WhisperTower


@register_audio_tower
class Qwen2AudioTower(WhisperTower):
    """Only the `audio_tower.*` tensors of the 7B checkpoint are fetched and read."""

    model_types = ("qwen2_audio", "qwen2_audio_encoder")
    encoder_class = Qwen2AudioEncoder
    config_class = Qwen2AudioEncoderConfig
    weight_prefixes = ("audio_tower.", "model.audio_tower.", "")
    frame_rate = 25.0

    def num_frames(self, num_samples_B: torch.Tensor) -> torch.Tensor:
        return (super().num_frames(num_samples_B) - 2) // 2 + 1

    def _finish(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        return self.encoder.layer_norm(self.encoder.avg_pooler(hidden_BTH.transpose(1, 2)).transpose(1, 2))
