"""Qwen3-Omni's audio encoder (Qwen team 2025), as the best published term retriever has it: 13 frames a second."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from qwen_term_retrieval.models.audio_towers.qwen3 import Qwen3Tower
from qwen_term_retrieval.models.audio_towers.tower import register_audio_tower


@register_audio_tower
class Qwen3OmniTower(Qwen3Tower):
    """Ends with the projection into the language model's space, as the stock encoder does."""

    model_types = ("qwen3_omni_moe", "qwen3_omni_moe_thinker", "qwen3_omni_moe_audio_encoder")
    encoder_class = Qwen3OmniMoeAudioEncoder
    config_class = Qwen3OmniMoeAudioEncoderConfig
    weight_prefixes = ("thinker.audio_tower.", "thinker.model.audio_tower.", "audio_tower.", "model.audio_tower.", "")
    pads_short_clips = False
    # Shorter clips cannot be reflected at their ends.
    min_samples = 400

    @classmethod
    def encoder_config_of(cls, checkpoint_config: dict[str, Any]) -> dict[str, Any]:
        return super().encoder_config_of(checkpoint_config.get("thinker_config", checkpoint_config))

    @property
    def hidden_size(self) -> int:
        return self.encoder.config.output_dim

    def _finish(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        encoder = self.encoder
        return encoder.proj2(encoder.act(encoder.proj1(encoder.ln_post(hidden_RH))))
