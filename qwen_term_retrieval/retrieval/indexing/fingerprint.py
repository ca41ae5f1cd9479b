"""Identity of a model's embedding space, so that vectors of two models are never compared."""

from __future__ import annotations

import json

import torch
import xxhash

from qwen_term_retrieval.models.pretrained_model import TermRetrievalPreTrainedModel

_SETTINGS = (
    "segments",
    "pooling",
    "audio_layers",
    "audio_tower_sha256",
    "lora",
    "text_tower_config",
    "text_tower_sha256",
    "text_lora",
)

_PHONEME_HEAD = "phoneme_head."


def model_fingerprint(model: TermRetrievalPreTrainedModel) -> str:
    """Identity of a model's embedding space: a hash of what it saves and of what turns terms into tokens.

    Base towers stand in it by their digests, so a search may fold LoRA into them (`fold_lora`). The phoneme head does
    not count: it makes no vector, and an index names the alphabet of its pronunciations itself. Weights are compared as
    bfloat16, so that a checkpoint opened in another precision keeps its fingerprint.
    """
    digest = xxhash.xxh3_128()
    config = model.config.to_dict()
    settings = {name: config[name] for name in _SETTINGS}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(model.own_state().items()):
        if name.startswith(_PHONEME_HEAD):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().to(torch.bfloat16).flatten().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()
