"""Low-rank adapters (Hu et al. 2021) in an audio encoder, through peft, without wrapping the model.

`PeftModel` around everything would freeze the heads and rename every parameter; injected adapters leave the model a
plain `PreTrainedModel` whose checkpoints hold adapters and heads alone.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

# Anchored to the encoder's own layers: a bare "q_proj" would match any module of that name in any tower.
TARGET_MODULES = r"layers\.\d+\.(self_attn\.(q|k|v|out)_proj|fc1|fc2)"


def inject_lora(encoder: nn.Module, fields: dict[str, Any]) -> None:
    """Add adapters to `encoder` in place; its own weights are frozen.

    Args:
        encoder: an audio tower's encoder.
        fields: of `peft.LoraConfig`; `target_modules` defaults to attention and feed-forward layers.
    """
    inject_adapter_in_model(LoraConfig(**{"target_modules": TARGET_MODULES, **fields}), encoder)


def merge_lora(encoder: nn.Module) -> None:
    """Add the adapters into the weights and take them out of the module tree.

    Raises:
        ValueError: there are none.
    """
    adapted = [(name, module) for name, module in encoder.named_modules() if isinstance(module, BaseTunerLayer)]
    if not adapted:
        raise ValueError("the audio tower has no LoRA adapters to merge")
    for name, module in adapted:
        module.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(encoder.get_submodule(parent), child, module.get_base_layer())
    del encoder.peft_config


def base_state(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """The encoder's own weights under their original names, with or without adapters around them."""
    state = encoder.state_dict()
    return {name.replace(".base_layer.", "."): values for name, values in state.items() if "lora_" not in name}
