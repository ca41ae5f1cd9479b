"""The pretrained weights below a retriever: which tower a checkpoint asks for, and whether it is the right one."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from qwen_term_retrieval.models.audio_towers import AUDIO_TOWERS, AudioTower
from qwen_term_retrieval.models.configuration import TermRetrievalConfig
from qwen_term_retrieval.models.lora import base_state
from qwen_term_retrieval.models.weights.checkpoints import CheckpointError, resolve_checkpoint, tower_sha256


def build_audio_tower(config: TermRetrievalConfig, attn_implementation: str | None = None) -> AudioTower:
    """The tower without its weights; fills in the config of its encoder.

    Raises:
        ValueError: no adapter knows the checkpoint's type.
    """
    checkpoint_config = config.audio_tower_config or config.audio_tower
    if isinstance(checkpoint_config, str):
        folder = resolve_checkpoint(checkpoint_config, weight_prefixes=())
        checkpoint_config = json.loads((folder / "config.json").read_bytes())
    kind = config.audio_tower_type
    if kind == "auto":
        kind = checkpoint_config.get("model_type", "")
    if kind not in AUDIO_TOWERS:
        raise ValueError(
            f"audio tower {config.audio_tower!r} is of type {kind!r}; there are {sorted(AUDIO_TOWERS)}. "
            f"Set audio_tower_type where the checkpoint's config does not say."
        )
    config.audio_tower_config = AUDIO_TOWERS[kind].encoder_config_of(checkpoint_config)
    return AUDIO_TOWERS[kind](config.audio_tower_config, attn_implementation)


def load_strictly(encoder: nn.Module, tensors: dict[str, torch.Tensor], name: Any) -> None:
    """Copy base weights in, whatever LoRA did to the names.

    Raises:
        CheckpointError: they are not those of such an encoder; names the checkpoint and the tensor.
    """
    own = base_state(encoder)
    if set(own) != set(tensors):
        missing, unexpected = sorted(set(own) - set(tensors))[:3], sorted(set(tensors) - set(own))[:3]
        raise CheckpointError(f"{name!r} does not fit its config: missing {missing}, unexpected {unexpected}")
    with torch.no_grad():
        for key, values in tensors.items():
            if own[key].shape != values.shape:
                raise CheckpointError(f"{name!r}: {key} is {tuple(values.shape)}, expected {tuple(own[key].shape)}")
            own[key].copy_(values)


def checked_digest(name: Any, expected: str | None, tensors: dict[str, torch.Tensor]) -> str:
    """The digest of base weights.

    Raises:
        CheckpointError: another was `expected`, that of the weights that the model was trained on.
    """
    digest = tower_sha256(tensors)
    if expected not in (None, digest):
        raise CheckpointError(
            f"the base tower {name!r} found here has the digest {digest[:16]}…, but the model was trained on "
            f"{str(expected)[:16]}…: its outputs would be wrong. Point the config's tower at the original weights."
        )
    return digest


def is_trained(encoder: nn.Module) -> bool:
    """Whether any of an encoder's own weights is trained, adapters left aside."""
    return any(values.requires_grad for name, values in encoder.named_parameters() if "lora_" not in name)
