"""Pretrained text encoders: what a term means, by any encoder or language model that `AutoModel` builds.

A decoder-only model, such as Qwen3-Embedding or the language model inside Qwen2-Audio, is read at its last token; of
a multimodal checkpoint only the language model's tensors are fetched and loaded. Of an encoder-decoder of the T5
family, whole or not, only the encoder is built: `AutoModel` would build both from either (transformers 5.23).

Shapes: N terms, L tokens, H hidden.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
)

from qwen_term_retrieval.models.attention_backend import attention_refused_by_name
from qwen_term_retrieval.models.configuration import TEXT_POOLINGS
from qwen_term_retrieval.models.lora import base_state
from qwen_term_retrieval.models.spans.pooling import pool_pyramid
from qwen_term_retrieval.models.text_towers.text_cache import TextCache
from qwen_term_retrieval.models.weights.checkpoints import load_tensors, resolve_checkpoint
from qwen_term_retrieval.text.spoken import as_written

# Where multimodal checkpoints keep their language model, as released and as transformers 5 names it in memory.
_LANGUAGE_MODEL_PREFIXES = {"qwen2_audio": ("language_model.model.", "model.language_model.")}
_SEGMENTS = (1, 2, 4)
_SENTENCE_TRANSFORMERS_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}


class HFTextEncoder(nn.Module):
    """A pretrained text model, pooled over its tokens.

    The encoder's own pooler is removed: it would be parameters without gradient, which distributed training refuses.

    Args:
        checkpoint: Hub id or local folder.
        settings: `pooling`: "cls" (the first token), "mean" (over valid tokens), "last" (the last valid token),
            "pyramid" (means over all of them, their halves and their quarters, in order: for encoders of sounds), or
            "auto": what `1_Pooling/config.json` of the checkpoint says, else "last" for decoder-only models and
            "mean" for others. `encoder`: its config, where it is known already.
        attn_implementation: None for the encoder's own choice.

    Raises:
        ValueError: the settings, or the checkpoint's pooling, are none of these.
    """

    def __init__(self, checkpoint: str, settings: dict[str, Any], attn_implementation: str | None = None):
        super().__init__()
        unknown = set(settings) - {"pooling", "encoder"}
        if unknown:
            raise ValueError(f"text_tower_config: unknown keys {sorted(unknown)}; a text encoder takes 'pooling'")
        self.checkpoint = checkpoint
        self._encoder_config = settings.get("encoder") or _encoder_config(self._checkpoint_folder())
        config = AutoConfig.for_model(**self._encoder_config)
        self.pooling = settings.get("pooling", "auto")
        if self.pooling not in TEXT_POOLINGS:
            raise ValueError(
                f"text_tower_config: pooling must be one of {', '.join(TEXT_POOLINGS)}, not {self.pooling!r}"
            )
        if self.pooling == "auto":
            self.pooling = _pooling_of(self._checkpoint_folder(), config)
        config.use_cache = False
        with attention_refused_by_name(attn_implementation, checkpoint):
            model = _auto_class(config).from_config(config, attn_implementation=attn_implementation)
            self.encoder: Any = _stack_of(model)
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None
        self.cache: TextCache | None = None
        self._tokenizer: Any = None

    def _checkpoint_folder(self) -> Path:
        """With its config and tokenizer, whether its weights are there or not."""
        return resolve_checkpoint(self.checkpoint, ())

    @property
    def hidden_size(self) -> int:
        """Size of the pooled vector."""
        parts = sum(_SEGMENTS) if self.pooling == "pyramid" else 1
        return parts * self.encoder.config.hidden_size

    def settings(self) -> dict[str, Any]:
        return {"pooling": self.pooling, "encoder": self._encoder_config}

    def base_tensors(self) -> dict[str, torch.Tensor]:
        """The checkpoint's weights. Through `AutoModel`, because it knows each architecture's old names."""
        prefixes = _LANGUAGE_MODEL_PREFIXES.get(_model_type(self._checkpoint_folder()))
        if prefixes is not None:
            return load_tensors(resolve_checkpoint(self.checkpoint, prefixes), prefixes)
        auto_class, folder = _auto_class(self.encoder.config), resolve_checkpoint(self.checkpoint)
        weights = _stack_of(auto_class.from_pretrained(folder, dtype=torch.float32)).state_dict()
        return {name: weights[name] for name in base_state(self.encoder) if name in weights}

    @property
    def is_frozen(self) -> bool:
        """Whether no parameter of the encoder, adapters included, is trained."""
        return not any(values.requires_grad for values in self.parameters())

    def train(self, mode: bool = True) -> HFTextEncoder:
        """As `nn.Module.train`; a frozen encoder stays as it evaluates, so that a text has one vector in every step."""
        return super().train(mode and not self.is_frozen)

    def tokenize(self, texts: Sequence[str], languages: Sequence[str | None] | None = None) -> dict[str, torch.Tensor]:
        """Token ids and mask, (N, L) int64 each, on the CPU; longer texts are cut at the encoder's limit.

        Where every text is in the cache, its pooled vectors `pooled_NH` instead. `languages` are not looked at.
        """
        texts = list(map(as_written, texts))
        if self.cache is not None and self.cache.has(texts):
            return {"pooled_NH": self.cache.get(texts)}
        if self._tokenizer is None:
            self._tokenizer = AutoTokenizer.from_pretrained(self._checkpoint_folder(), padding_side="right")
            if self._tokenizer.pad_token is None:
                self._tokenizer.pad_token = self._tokenizer.eos_token
        limit = min(self._tokenizer.model_max_length, getattr(self.encoder.config, "max_position_embeddings", 512))
        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pooled_NH: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pooled vectors (N, hidden_size) of token ids and mask, (N, L) each, padded on either side."""
        if pooled_NH is not None:
            return pooled_NH
        if input_ids is None or attention_mask is None:
            raise ValueError("a text encoder needs input_ids and attention_mask, or pooled_NH")
        input_ids, attention_mask = _padded_right(input_ids, attention_mask)
        hidden_NLH = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            return hidden_NLH[:, 0]
        if self.pooling == "pyramid":
            length_N = attention_mask.sum(1)
            text_N = torch.arange(len(length_N), device=length_N.device)
            return pool_pyramid(hidden_NLH, length_N, text_N, torch.zeros_like(length_N), length_N, _SEGMENTS)
        if self.pooling == "last":
            last_N = attention_mask.sum(1) - 1
            return hidden_NLH[torch.arange(len(last_N), device=last_N.device), last_N]
        mask_NL1 = attention_mask.unsqueeze(-1).to(hidden_NLH.dtype)
        return (hidden_NLH * mask_NL1).sum(1) / mask_NL1.sum(1).clamp(min=1)


def _padded_right(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Padding moved behind each text: encoders with absolute positions count them from the first column."""
    num_left_N1 = attention_mask.argmax(1, keepdim=True)
    column_NL = (torch.arange(attention_mask.shape[1], device=attention_mask.device) + num_left_N1) % (
        attention_mask.shape[1]
    )
    return input_ids.gather(1, column_NL), attention_mask.gather(1, column_NL)


def _model_type(folder: Path) -> str:
    return json.loads((folder / "config.json").read_bytes()).get("model_type", "")


def _encoder_config(folder: Path) -> dict[str, Any]:
    config = AutoConfig.from_pretrained(folder)
    if config.model_type in _LANGUAGE_MODEL_PREFIXES:
        config = config.get_text_config()
    if config.is_encoder_decoder and _auto_class(config) is AutoModel:
        raise ValueError(
            f"text tower {folder} is an encoder-decoder ({config.model_type}) whose encoder does not stand alone; give "
            "an encoder, or one of the T5 family"
        )
    return config.to_dict()


def _auto_class(config: PreTrainedConfig) -> Any:
    """What builds the encoder alone: `AutoModel`, but for families of which it builds a decoder as well."""
    kind = type(config)
    encoder_alone = kind in MODEL_FOR_TEXT_ENCODING_MAPPING and kind in MODEL_MAPPING
    if encoder_alone and MODEL_FOR_TEXT_ENCODING_MAPPING[kind] is not MODEL_MAPPING[kind]:
        return AutoModelForTextEncoding
    return AutoModel


def _stack_of(model: Any) -> Any:
    """The layers of a T5 encoder without the model around them, which holds the embeddings a second time.

    Of two names of one tensor, saving keeps one; the other would come back new, and the trained tower as another.
    """
    return model.encoder if _auto_class(model.config) is AutoModelForTextEncoding else model


def _pooling_of(folder: Path, config: PreTrainedConfig) -> str:
    path = folder / "1_Pooling" / "config.json"
    if path.is_file():
        fields = json.loads(path.read_bytes())
        chosen = [name for name in fields if name.startswith("pooling_mode_") and fields[name] is True]
        chosen = chosen or [str(fields.get("pooling_mode"))]
        named = {name.split("_")[2]: pooling for name, pooling in _SENTENCE_TRANSFORMERS_POOLINGS.items()}
        poolings = [(_SENTENCE_TRANSFORMERS_POOLINGS | named).get(name) for name in chosen]
        if len(poolings) != 1 or poolings[0] is None:
            raise ValueError(
                f"{path} pools by {', '.join(chosen)}; a text tower pools by cls, mean or last: set text_pooling"
            )
        return poolings[0]
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return "last" if causal else "mean"
