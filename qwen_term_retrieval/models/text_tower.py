"""Text towers: terms to pooled vectors, by how they sound or by what they mean.

A tower tokenizes on the CPU (`tokenize(texts) -> inputs`, in the collator) and encodes on the device
(`tower(**inputs) -> h_NH`). `build_text_tower` picks it from `TermRetrievalConfig.text_tower`.

Shapes: N terms, L tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from qwen_term_retrieval.models.checkpoints import resolve_checkpoint
from qwen_term_retrieval.models.phoneme_encoder import PhonemeEncoder

_PHONEMES = "phonemes:"


class HFTextEncoder(nn.Module):
    """Any encoder that `AutoModel` builds, pooled over its tokens.

    `pooling` is "mean" (over valid tokens) or "cls" (the first token). The encoder's own pooler is removed: it would be
    parameters without gradient, which distributed training refuses.
    """

    def __init__(self, checkpoint: str, settings: dict[str, Any]):
        super().__init__()
        unknown = set(settings) - {"pooling", "encoder"}
        if unknown:
            raise ValueError(f"text_tower_config: unknown keys {sorted(unknown)}; a text encoder takes 'pooling'")
        self.checkpoint = checkpoint
        self.pooling = settings.get("pooling", "mean")
        if self.pooling not in {"mean", "cls"}:
            raise ValueError(f"text_tower_config: pooling must be 'mean' or 'cls', not {self.pooling!r}")
        self._encoder_config = settings.get("encoder") or AutoConfig.from_pretrained(self._folder()).to_dict()
        self.encoder = AutoModel.from_config(AutoConfig.for_model(**self._encoder_config))
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None
        self._tokenizer: Any = None

    def _folder(self) -> Path:
        return resolve_checkpoint(self.checkpoint)

    @property
    def hidden_size(self) -> int:
        return self.encoder.config.hidden_size

    def settings(self) -> dict[str, Any]:
        return {"pooling": self.pooling, "encoder": self._encoder_config}

    def base_tensors(self) -> dict[str, torch.Tensor]:
        """The checkpoint's weights. Through `AutoModel`, because it knows each architecture's old names."""
        weights = AutoModel.from_pretrained(self._folder(), dtype=torch.float32).state_dict()
        return {name: weights[name] for name in self.encoder.state_dict() if name in weights}

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Token ids and mask, (N, L) int64 each, on the CPU; longer texts are cut at the encoder's limit."""
        if self._tokenizer is None:
            self._tokenizer = AutoTokenizer.from_pretrained(self._folder())
        limit = min(self._tokenizer.model_max_length, getattr(self.encoder.config, "max_position_embeddings", 512))
        inputs = self._tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Pooled vectors (N, hidden_size) of token ids and mask, (N, L) each."""
        hidden_NLH = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            return hidden_NLH[:, 0]
        mask_NL1 = attention_mask.unsqueeze(-1).to(hidden_NLH.dtype)
        return (hidden_NLH * mask_NL1).sum(1) / mask_NL1.sum(1).clamp(min=1)


TextTower = PhonemeEncoder | HFTextEncoder


def build_text_tower(name: str, settings: dict[str, Any] | None) -> TextTower:
    """The text tower called `name` (see `TermRetrievalConfig.text_tower`), without a checkpoint's weights."""
    settings = dict(settings or {})
    if name.startswith(_PHONEMES):
        return PhonemeEncoder({**settings, "phonemizer": name.removeprefix(_PHONEMES)})
    return HFTextEncoder(name, settings)
