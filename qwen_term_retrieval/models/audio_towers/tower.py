"""What every audio tower is: int16 samples to encoder frames, without computing on 30 s of padding.

A tower is a small class around a stock encoder of `transformers`, kept whole as `.encoder`, so that LoRA, gradient
checkpointing and attention backends see plain Hugging Face modules. Only the run through it is ours: stock encoders
want fixed lengths, drop layers at random or show no layer but the last. On a clip's valid frames the output equals
the stock path's for that clip alone, whatever else is in the batch.

`register_audio_tower` adds a tower; `AUDIO_TOWERS` finds it by the `model_type` of a checkpoint's config. To write one,
start from `parakeet.py`: name the encoder, say what it hears (`mel`, `num_frames`), and run its layers (`encode`).
`tests/models/audio_towers/test_audio_adapters.py` compares every tower with its stock path, clip by clip.

Shapes: B clips, S samples, T encoder frames, H hidden, L layers.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.models.attention_backend import attention_refused_by_name

AUDIO_TOWERS: dict[str, type[AudioTower]] = {}


def register_audio_tower(cls: type[AudioTower]) -> type[AudioTower]:
    """Class decorator: find the tower by each of its `model_types`."""
    AUDIO_TOWERS.update(dict.fromkeys(cls.model_types, cls))
    return cls


def frame_mask(num_frames_B: torch.Tensor, width: int) -> torch.Tensor:
    """True on each clip's own frames, (B, width)."""
    return torch.arange(width, device=num_frames_B.device) < num_frames_B[:, None]


class AudioTower(nn.Module, abc.ABC):
    """One family of audio encoders.

    A subclass names its encoder and where its weights lie in a checkpoint, turns samples into what the encoder reads
    (`mel`), and runs the encoder on a padded batch (`encode`).
    """

    model_types: ClassVar[tuple[str, ...]]
    encoder_class: ClassVar[type[PreTrainedModel]]
    config_class: ClassVar[type[PreTrainedConfig]]
    encoder: Any
    """The stock encoder."""
    weight_prefixes: ClassVar[tuple[str, ...]]
    """Where a checkpoint may keep the encoder's tensors, the likeliest first."""
    frame_rate: ClassVar[float]
    """Encoder frames a second."""
    lora_targets: ClassVar[str] = r"layers\.\d+\.(self_attn\.(q|k|v|out)_proj|fc1|fc2)"
    """The modules that adapters go into: a regular expression anchored to the encoder's own layers, because a bare
    "q_proj" would match any module of that name in any tower."""
    never_trained: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of parameters that stay as they are even when the tower is trained."""
    min_samples: ClassVar[int] = 1
    """The shortest clip that its spectrogram is defined for."""

    def __init__(self, encoder_config: dict[str, Any], attn_implementation: str | None = None):
        super().__init__()
        config = self.config_class.from_dict(dict(encoder_config))
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        with attention_refused_by_name(attn_implementation, self.encoder_class.__name__):
            self.encoder = self.encoder_class(config)

    @classmethod
    def encoder_config_of(cls, checkpoint_config: dict[str, Any]) -> dict[str, Any]:
        """The encoder's part of a checkpoint's `config.json`: its `audio_config`, or the whole."""
        return checkpoint_config.get("audio_config", checkpoint_config)

    @property
    def layers(self) -> nn.ModuleList:
        return self.encoder.layers

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        return self.encoder.config.hidden_size

    @property
    @abc.abstractmethod
    def max_seconds(self) -> float:
        """The longest clip that the tower takes."""

    @property
    @abc.abstractmethod
    def input_layer(self) -> nn.Module:
        """The first layer with weights: where `enable_input_require_grads` begins the graph."""

    @abc.abstractmethod
    def num_frames(self, num_samples_B: torch.Tensor) -> torch.Tensor:
        """Valid encoder frames of clips of so many samples."""

    @abc.abstractmethod
    def mel(self, pcm_BS: torch.Tensor, num_samples_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the encoder reads, in its own layout, and how many frames of it belong to each clip."""

    @abc.abstractmethod
    def encode(self, mel: torch.Tensor, num_mel_B: torch.Tensor, num_layers: int = 1) -> list[torch.Tensor]:
        """The outputs (B, T, H) of the last `num_layers` layers, each as the stock encoder would end with it."""

    def forward(
        self, pcm_BS: torch.Tensor, num_samples_B: torch.Tensor, num_layers: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode a padded batch.

        Args:
            pcm_BS: int16, or floats in [-1, 1); 16 kHz.
            num_samples_B: samples of each clip.
            num_layers: how many of the last layers to return.

        Returns:
            frames_BTH, or (B, L, T, H) for more than one layer, the last layer last; and num_frames_B.
            Frames behind a clip's last hold no meaning.

        Raises:
            ValueError: a clip is longer than the tower takes, or too short for one frame.
        """
        self.check_lengths(num_samples_B)
        mel, num_mel_B = self.mel(pcm_BS, num_samples_B)
        layers = self.encode(mel, num_mel_B.to(mel.device), num_layers)
        frames = layers[0] if num_layers == 1 else torch.stack(layers, dim=1)
        return frames, self.num_frames(num_samples_B).to(mel.device)

    def run_layers(self, hidden: torch.Tensor, num_layers: int, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """What the last `num_layers` layers give, each layer called with what follows `num_layers`."""
        outputs = []
        for index, layer in enumerate(self.layers):
            output = layer(hidden, *args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
            if index >= self.num_layers - num_layers:
                outputs.append(hidden)
        return outputs

    def check_lengths(self, num_samples_B: torch.Tensor, names: Sequence[str] | None = None) -> None:
        """See that the tower takes clips of so many samples; `names` are what messages call them.

        Raises:
            ValueError: a clip is longer than the tower takes, or too short for one frame.
        """
        lengths = num_samples_B.tolist()
        for row, (length, frames) in enumerate(zip(lengths, self.num_frames(num_samples_B).tolist(), strict=True)):
            name = f"clip {row} of the batch" if names is None else names[row]
            if length > self.max_seconds * SAMPLING_RATE:
                raise ValueError(
                    f"{name} lasts {length / SAMPLING_RATE:.1f} s; the audio tower takes at most "
                    f"{self.max_seconds:g} s. Cut it into shorter clips, or search it as a stream."
                )
            if length < self.min_samples or frames <= 0:
                raise ValueError(
                    f"{name} has {length} samples: too short for one encoder frame "
                    f"({1 / self.frame_rate:g} s). Drop it, or pad it with silence."
                )
