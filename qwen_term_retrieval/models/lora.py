"""Low-rank adapters (Hu et al. 2021) in the encoders of both towers, through peft, without wrapping the model.

`PeftModel` around everything would freeze the heads and rename every parameter; injected adapters leave the model a
plain `PreTrainedModel` whose checkpoints hold adapters and heads alone.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

# BERT's names, T5's, and those of decoders such as Qwen2; the audio towers name their own.
TEXT_TARGETS = (
    r"(.*\.)?(?:block\.\d+\.)?layers?\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj"
    r"|attention\.(self\.(query|key|value)|output\.dense)|intermediate\.dense|output\.dense"
    r"|SelfAttention\.(q|k|v|o)|DenseReluDense\.(wi|wi_0|wi_1|wo))"
)


def inject_lora(encoder: nn.Module, fields: dict[str, Any], target_modules: str) -> None:
    """Add adapters to `encoder` in place; its own weights are frozen.

    Args:
        encoder: a tower's encoder.
        fields: of `peft.LoraConfig`.
        target_modules: a regular expression for the names of the modules to adapt, where the fields do not say.

    Raises:
        ValueError: no module of the encoder has such a name.
    """
    inject_adapter_in_model(LoraConfig(**{"target_modules": target_modules, **fields}), encoder)


def merge_lora(encoder: nn.Module) -> None:
    """Add the adapters into the weights and take them out of the module tree.

    Raises:
        ValueError: there are none.
    """
    adapted = _adapted_layers(encoder)
    if not adapted:
        raise ValueError("the tower has no LoRA adapters to merge")
    fold_lora(encoder)
    for name, layer in adapted.items():
        parent, _, child = name.rpartition(".")
        setattr(encoder.get_submodule(parent), child, layer.get_base_layer())
    del encoder.peft_config


def fold_lora(encoder: nn.Module) -> None:
    """Add the adapters into the weights but keep them, so that `unfold_lora` can take them out again."""
    for layer in _adapted_layers(encoder).values():
        if not layer.merged:
            layer.merge(safe_merge=True)


def unfold_lora(encoder: nn.Module) -> None:
    """The weights as they were before `fold_lora`, but for rounding."""
    for layer in _adapted_layers(encoder).values():
        if layer.merged:
            layer.unmerge()


def _adapted_layers(encoder: nn.Module) -> dict[str, BaseTunerLayer]:
    return {name: layer for name, layer in encoder.named_modules() if isinstance(layer, BaseTunerLayer)}


def base_state(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """The encoder's own weights under their original names, with or without adapters around them."""
    state = encoder.state_dict()
    return {name.replace(".base_layer.", "."): values for name, values in state.items() if "lora_" not in name}
