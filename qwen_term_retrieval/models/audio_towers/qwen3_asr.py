"""Qwen3-ASR's audio encoder (Qwen team 2026): 13 frames a second."""

from __future__ import annotations

from transformers.models.qwen3_asr.configuration_qwen3_asr import Qwen3ASREncoderConfig
from transformers.models.qwen3_asr.modeling_qwen3_asr import Qwen3ASREncoder

from qwen_term_retrieval.models.audio_towers.mel import HOP_SAMPLES
from qwen_term_retrieval.models.audio_towers.qwen3 import Qwen3Tower
from qwen_term_retrieval.models.audio_towers.tower import register_audio_tower


@register_audio_tower
class Qwen3ASRTower(Qwen3Tower):
    """The stock extractor pads a clip to half a second, and so does `mel`; its own frames alone count as valid."""

    model_types = ("qwen3_asr", "qwen3_asr_encoder")
    encoder_class = Qwen3ASREncoder
    config_class = Qwen3ASREncoderConfig
    weight_prefixes = ("model.audio_tower.", "audio_tower.", "")
    min_samples = HOP_SAMPLES
    silence_up_to_samples = 8_000
