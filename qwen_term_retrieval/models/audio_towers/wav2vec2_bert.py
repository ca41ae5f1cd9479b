"""Wav2Vec2-BERT (Seamless Communication 2023): a conformer over pairs of filterbank frames, 50 a second."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel
from transformers.masking_utils import create_bidirectional_mask

from qwen_term_retrieval.models.audio_towers.normalized_mel import kaldi_fbank, num_kaldi_frames
from qwen_term_retrieval.models.audio_towers.tower import AudioTower, frame_mask, register_audio_tower


@register_audio_tower
class Wav2Vec2BertTower(AudioTower):
    """Without the adapter that some checkpoints end with: it would halve the frame rate."""

    model_types = ("wav2vec2-bert",)
    encoder_class = Wav2Vec2BertModel
    config_class = Wav2Vec2BertConfig
    weight_prefixes = ("wav2vec2_bert.", "")
    frame_rate = 50.0
    lora_targets = r"encoder\.layers\.\d+\.(self_attn\.linear_(q|k|v|out)|ffn[12]\.(intermediate_dense|output_dense))"
    # SpecAugment's embedding: masking is the noise pipeline's business, and a parameter without gradient stops DDP.
    never_trained = ("masked_spec_embed", "adapter.")

    @property
    def layers(self) -> nn.ModuleList:
        return self.encoder.encoder.layers

    @property
    def max_seconds(self) -> float:
        return self.encoder.config.max_source_positions / self.frame_rate

    @property
    def input_layer(self) -> nn.Module:
        return self.encoder.feature_projection.projection

    def num_frames(self, num_samples_B: torch.Tensor) -> torch.Tensor:
        return num_kaldi_frames(num_samples_B) // 2

    def mel(self, pcm_BS: torch.Tensor, num_samples_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return kaldi_fbank(pcm_BS, num_samples_B, num_mel_bins=self.encoder.config.feature_projection_input_dim // 2)

    def encode(self, mel: torch.Tensor, num_mel_B: torch.Tensor, num_layers: int = 1) -> list[torch.Tensor]:
        encoder = self.encoder
        pairs_BTM = mel[:, : mel.shape[1] // 2 * 2].unflatten(1, (-1, 2)).flatten(2)
        hidden_BTH, _ = encoder.feature_projection(pairs_BTM.to(encoder.dtype))
        valid_BT = frame_mask(num_mel_B // 2, hidden_BTH.shape[1])
        hidden_BTH = hidden_BTH.masked_fill(~valid_BT[..., None], 0.0)
        mask = create_bidirectional_mask(encoder.config, hidden_BTH, valid_BT.to(torch.long))
        hidden_BTH, positions = encoder.encoder.dropout(hidden_BTH), encoder.encoder.embed_positions
        masks = {"attention_mask": mask, "conv_attention_mask": valid_BT}
        relative = positions(hidden_BTH) if positions is not None else None
        layers = self.run_layers(hidden_BTH, num_layers, relative_position_embeddings=relative, **masks)
        if encoder.intermediate_ffn is None:
            return layers
        return [layer_BTH + 0.5 * encoder.intermediate_ffn(layer_BTH) for layer_BTH in layers]
