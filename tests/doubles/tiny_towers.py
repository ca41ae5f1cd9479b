"""Audio towers of every family with random weights and hardly any layers."""

import torch

from qwen_term_retrieval.models.audio_towers import AUDIO_TOWERS

QWEN3 = {
    "num_mel_bins": 128,
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "downsample_hidden_size": 4,
    "output_dim": 12,
}
CONFORMER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS = {
    "qwen3_omni_moe_audio_encoder": QWEN3,
    "qwen3_asr_encoder": QWEN3,
    "parakeet_encoder": CONFORMER | {"subsampling_conv_channels": 4, "num_mel_bins": 80},
    "wav2vec2-bert": CONFORMER | {"left_max_position_embeddings": 8, "mask_time_prob": 0.0},
}
WHISPER = {"num_mel_bins": 80, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
ALL = CONFIGS | {"whisper": WHISPER, "qwen2_audio_encoder": WHISPER | {"num_mel_bins": 128}}


def build(kind):
    """With weights that let every frame, border and bias be heard: those of a new model hardly change what comes in."""
    torch.manual_seed(0)
    tower = AUDIO_TOWERS[kind](dict(ALL[kind]))
    with torch.no_grad():
        for values in tower.encoder.parameters():
            values.add_(torch.randn_like(values) * (0.2 if values.dim() > 1 else 0.1))
    return tower
