"""Useful operations of a training step over pairs, from the lengths in a batch: padding and masked attention left out.

Two operations a multiplication, three passes (forward, and backward for inputs and weights). Matrix products and
attention count, nothing else does; a causal query sees half of the keys. See `models/flops.py` for the convention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qwen_term_retrieval.pretraining.text.batches import Inputs

_PASSES_TIMES_TWO = 6


def step_flops(model: Any, inputs: Inputs) -> int:
    """Operations of one micro-batch, forward and backward; the model is one that `build_model` made."""
    if model.config.is_encoder_decoder:
        return _encoder_decoder(model, inputs)
    document_ids = inputs["document_ids"]
    length_D = torch.unique_consecutive(document_ids[document_ids >= 0], return_counts=True)[1].double()
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    inner = config.num_attention_heads * head_dim
    products = _matrix_size(model.model) + _size(model.lm_head)
    attention = 2 * config.num_hidden_layers * inner * (length_D * (length_D + 1) / 2).sum()
    return round(float(_PASSES_TIMES_TWO * (products * length_D.sum() + attention)))


def _encoder_decoder(model: Any, inputs: Inputs) -> int:
    prompt_B = inputs["attention_mask"].sum(1).double()
    response_B = (inputs["labels"] >= 0).sum(1).double()
    config = model.config
    inner = config.num_heads * config.d_kv
    cross = _crossing(model.decoder)
    products = _matrix_size(model.encoder) * prompt_B.sum() + cross * prompt_B.sum()
    products = products + (_matrix_size(model.decoder) - cross + _size(model.lm_head)) * response_B.sum()
    seen_B = config.num_layers * prompt_B.square()
    seen_B = seen_B + config.num_decoder_layers * response_B * ((response_B + 1) / 2 + prompt_B)
    return round(float(_PASSES_TIMES_TWO * (products + 2 * inner * seen_B.sum())))


def _crossing(decoder: nn.Module) -> int:
    """Weights of the decoder that are applied to the encoder's output: keys and values of its cross-attention."""
    named = decoder.named_modules()
    return sum(_size(layer) for name, layer in named if name.endswith(("EncDecAttention.k", "EncDecAttention.v")))


def _matrix_size(module: nn.Module) -> int:
    return sum(_size(layer) for layer in module.modules() if isinstance(layer, nn.Linear))


def _size(layer: nn.Module) -> int:
    weight = layer.weight
    return weight.numel() if isinstance(weight, torch.Tensor) else 0
