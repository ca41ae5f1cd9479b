"""Identity of a model's embedding space, so that vectors of two models are never compared."""

from __future__ import annotations

import json

import torch
import xxhash
from transformers import PreTrainedModel


def model_fingerprint(model: PreTrainedModel) -> str:
    """Identity of a model's embedding space: a hash of every weight and of what turns terms into tokens.

    Weights are compared as bfloat16, so that a checkpoint opened in another precision keeps its fingerprint.
    """
    digest = xxhash.xxh3_128()
    config = model.config.to_dict()
    settings = {name: config[name] for name in ("segments", "audio_layers", "text_tower_config")}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to(torch.bfloat16).flatten().cpu().view(torch.uint8).numpy())
    return digest.hexdigest()
