"""Audio towers: int16 samples to encoder frames, without computing on 30 s of padding.

A tower is a small class around a stock encoder of `transformers`, kept whole as `.encoder`, so that LoRA, gradient
checkpointing and attention backends see plain Hugging Face modules. Only the run through it is ours: the stock
`forward` insists on 3,000 mel frames. On a clip's valid frames the output equals the stock encoder's at 30 s with
an attention mask, whatever else is in the batch.

`register_audio_tower` adds a tower; `AUDIO_TOWERS` finds it by the `model_type` of a checkpoint's config.

Shapes: B clips, S samples, M mel bins, T encoder frames, H hidden, L layers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, Qwen2AudioEncoderConfig, WhisperConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from qwen_term_retrieval.models.mel import HOP_SAMPLES, SAMPLING_RATE, log_mel, num_mel_frames

AUDIO_TOWERS: dict[str, type[AudioTower]] = {}


def register_audio_tower(cls: type[AudioTower]) -> type[AudioTower]:
    """Class decorator: find the tower by each of its `model_types`."""
    AUDIO_TOWERS.update(dict.fromkeys(cls.model_types, cls))
    return cls


class AudioTower(nn.Module):
    """Two convolutions over mel frames and a bidirectional transformer: the family of Whisper's encoder.

    A subclass names its encoder, where its weights lie in a checkpoint, and what follows the last layer.
    """

    model_types: ClassVar[tuple[str, ...]]
    encoder_class: ClassVar[type]
    config_class: ClassVar[type[PreTrainedConfig]]
    weight_prefixes: ClassVar[tuple[str, ...]]
    """Where a checkpoint may keep the encoder's tensors, the likeliest first."""
    frame_rate: ClassVar[float]
    """Encoder frames a second."""

    def __init__(self, encoder_config: dict[str, Any]):
        super().__init__()
        self.encoder = self.encoder_class(self.config_class.from_dict(dict(encoder_config)))

    @classmethod
    def encoder_config_of(cls, checkpoint_config: dict[str, Any]) -> dict[str, Any]:
        """The encoder's part of a checkpoint's `config.json`."""
        return checkpoint_config

    @property
    def hidden_size(self) -> int:
        return self.encoder.config.d_model

    @property
    def num_layers(self) -> int:
        return len(self.encoder.layers)

    @property
    def max_mel_frames(self) -> int:
        return self.encoder.config.max_source_positions * 2

    @property
    def max_seconds(self) -> float:
        return self.max_mel_frames * HOP_SAMPLES / SAMPLING_RATE

    def num_frames(self, num_samples_B: torch.Tensor) -> torch.Tensor:
        """Valid encoder frames of clips of so many samples."""
        return self._pooled_frames((num_mel_frames(num_samples_B) - 1) // 2 + 1)

    def forward(
        self, pcm_BS: torch.Tensor, num_samples_B: torch.Tensor, num_layers: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode a padded batch.

        Args:
            pcm_BS: int16, or floats in [-1, 1); 16 kHz.
            num_samples_B: samples of each clip.
            num_layers: how many of the last layers to return.

        Returns:
            features_BTH, or (B, L, T, H) for more than one layer, the last layer last; and num_frames_B.
            Frames behind a clip's last hold no meaning.

        Raises:
            ValueError: a clip is longer than the tower takes, or too short for one frame.
        """
        self._check_lengths(num_samples_B)
        mel_BMT, num_mel_B = log_mel(
            pcm_BS, num_samples_B, num_mel_bins=self.encoder.config.num_mel_bins, max_frames=self.max_mel_frames
        )
        layers = self.encode(mel_BMT, num_mel_B.to(mel_BMT.device), num_layers)
        features = layers[0] if num_layers == 1 else torch.stack(layers, dim=1)
        return features, self.num_frames(num_samples_B).to(mel_BMT.device)

    def encode(self, mel_BMT: torch.Tensor, num_mel_B: torch.Tensor, num_layers: int = 1) -> list[torch.Tensor]:
        """The outputs of the last `num_layers` layers, each as the stock encoder would end with it."""
        encoder = self.encoder
        dropout = encoder.dropout if self.training else 0.0
        hidden_BHT = F.gelu(encoder.conv1(mel_BMT.to(encoder.conv1.weight.dtype)))
        hidden_BTH = F.gelu(encoder.conv2(hidden_BHT)).transpose(1, 2)
        hidden_BTH = hidden_BTH + encoder.embed_positions.weight[: hidden_BTH.shape[1]]
        hidden_BTH = F.dropout(hidden_BTH, p=dropout, training=self.training)
        valid_BT = torch.arange(hidden_BTH.shape[1], device=hidden_BTH.device) < ((num_mel_B - 1) // 2 + 1)[:, None]
        mask = create_bidirectional_mask(
            config=encoder.config, inputs_embeds=hidden_BTH, attention_mask=valid_BT.to(torch.long)
        )
        first = self.num_layers - num_layers
        outputs = []
        for index, layer in enumerate(encoder.layers):
            hidden_BTH = layer(hidden_BTH, mask)
            if index >= first:
                outputs.append(encoder.layer_norm(self._pool(hidden_BTH)))
        return outputs

    def _pool(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        return hidden_BTH

    def _pooled_frames(self, num_frames_B: torch.Tensor) -> torch.Tensor:
        return num_frames_B

    def _check_lengths(self, num_samples_B: torch.Tensor) -> None:
        lengths = num_samples_B.tolist()
        limit = self.max_mel_frames * HOP_SAMPLES
        for row, (length, frames) in enumerate(zip(lengths, self.num_frames(num_samples_B).tolist(), strict=True)):
            if length > limit:
                raise ValueError(
                    f"clip {row} of the batch lasts {length / SAMPLING_RATE:.1f} s; the audio tower takes at most "
                    f"{self.max_seconds:g} s. Cut it into shorter clips, or search it as a stream."
                )
            if length <= 0 or frames <= 0:
                raise ValueError(
                    f"clip {row} of the batch has {length} samples: too short for one encoder frame "
                    f"({1 / self.frame_rate:g} s). Drop it, or pad it with silence."
                )


@register_audio_tower
class WhisperTower(AudioTower):
    """Whisper's encoder (Radford et al. 2022): 50 frames a second."""

    model_types = ("whisper",)
    encoder_class = WhisperEncoder
    config_class = WhisperConfig
    weight_prefixes = ("model.encoder.", "encoder.", "")
    frame_rate = 50.0


@register_audio_tower
class Qwen2AudioTower(AudioTower):
    """Qwen2-Audio's encoder (Chu et al. 2024): Whisper-large-v3's with pairs of frames averaged, 25 a second."""

    model_types = ("qwen2_audio", "qwen2_audio_encoder")
    encoder_class = Qwen2AudioEncoder
    config_class = Qwen2AudioEncoderConfig
    weight_prefixes = ("audio_tower.", "model.audio_tower.", "")
    frame_rate = 25.0

    @classmethod
    def encoder_config_of(cls, checkpoint_config: dict[str, Any]) -> dict[str, Any]:
        return checkpoint_config.get("audio_config", checkpoint_config)

    def _pool(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        return self.encoder.avg_pooler(hidden_BTH.transpose(1, 2)).transpose(1, 2)

    def _pooled_frames(self, num_frames_B: torch.Tensor) -> torch.Tensor:
        return (num_frames_B - 2) // 2 + 1
