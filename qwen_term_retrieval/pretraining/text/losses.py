"""What is minimised: the summed loss of the tokens, divided by the tokens of the whole step.

The mean of a micro-batch, which models return, weighs a token by what else happens to lie in its micro-batch and on its
rank. And T5 hides a trap: its `forward` takes `**kwargs`, so the Trainer of transformers (5.23) takes it for a model
that divides by `num_items_in_batch`, which it is not. One batch of four in four micro-batches then makes five times
the update, and five times the loss in the log.

Shapes: R rows, L tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from qwen_term_retrieval.pretraining.text.batches import IGNORED_LABEL, Inputs


def forward_inputs(inputs: Inputs) -> dict[str, Any]:
    """What a model is called with: a batch without its labels, its documents as a mask."""
    rest = {name: values for name, values in inputs.items() if name not in ("labels", "document_ids")}
    if "document_ids" in inputs:
        rest["attention_mask"] = document_mask(inputs["document_ids"])
    return rest


def document_mask(document_ids_RL: torch.Tensor) -> torch.Tensor:
    """Which token may look at which: earlier ones of its own document. bool (R, 1, L, L)."""
    same_RLL = document_ids_RL[:, :, None] == document_ids_RL[:, None, :]
    return (same_RLL & torch.ones_like(same_RLL[0]).tril())[:, None]


def summed_loss(model: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
    """The sum of the losses of all labelled tokens, in nats; at least in float32."""
    logits_RLV = model(**forward_inputs(inputs), use_cache=False).logits
    logits_NV = logits_RLV.flatten(0, 1).to(torch.promote_types(logits_RLV.dtype, torch.float32))
    return F.cross_entropy(logits_NV, inputs["labels"].flatten(), ignore_index=IGNORED_LABEL, reduction="sum")


def num_labels(inputs: Inputs) -> torch.Tensor:
    return (inputs["labels"] != IGNORED_LABEL).sum()
