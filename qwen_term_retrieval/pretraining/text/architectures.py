"""Models to be trained from nothing: T5 (Raffel et al. 2020), and a small decoder of Qwen3's kind.

T5 at 768 × (10 + 10) with a vocabulary of 29,298 has 187.7 million parameters, its encoder 93.3 million.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qwen_term_retrieval.pretraining.text.arguments import TextModelArguments

# Checkpoints whose steps are tested here: packed rows and their mask, and the count of operations.
SUPPORTED = ("t5", "mt5", "qwen3", "qwen2", "llama")
# Rotary positions reach further than any packed document: these only bound generation.
_POSITIONS = 8192


def build_model(args: TextModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A new model of `args.architecture`, or that of the checkpoint `args.model`, to be trained on.

    Raises:
        ValueError: a checkpoint of a type that is none of `SUPPORTED`, or whose vocabulary is not the tokenizer's.
    """
    if args.model:
        return _from_checkpoint(args.model, len(tokenizer))
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return {"t5": _t5, "qwen3": _qwen3}[args.architecture](args, common)


def _t5(args: TextModelArguments, common: dict[str, Any]) -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(
            d_model=args.hidden_size,
            d_ff=args.intermediate_size,
            d_kv=args.hidden_size // args.num_heads,
            num_layers=args.num_layers,
            num_heads=args.num_heads,
            dropout_rate=args.dropout,
            # Every config takes it, and none declares it (transformers 5.23).
            decoder_start_token_id=common["pad_token_id"],  # type: ignore[call-arg]
            **common,
        )
    )


def _qwen3(args: TextModelArguments, common: dict[str, Any]) -> PreTrainedModel:
    return Qwen3ForCausalLM(
        Qwen3Config(
            hidden_size=args.hidden_size,
            intermediate_size=args.intermediate_size,
            head_dim=args.hidden_size // args.num_heads,
            num_hidden_layers=args.num_layers,
            num_attention_heads=args.num_heads,
            num_key_value_heads=args.num_heads,
            attention_dropout=args.dropout,
            tie_word_embeddings=True,
            max_position_embeddings=_POSITIONS,
            **common,
        )
    )


def _from_checkpoint(name: str, vocabulary: int) -> PreTrainedModel:
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise ValueError(f"model {name} holds no config.json, so it is no checkpoint")
    config = AutoConfig.from_pretrained(name)
    if config.model_type not in SUPPORTED:
        raise ValueError(f"model {name} is of type {config.model_type}; those that go on here: {', '.join(SUPPORTED)}")
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    # In float32, whatever it was saved in: `--bf16` computes in bfloat16 over weights that an optimizer can change.
    model = kind.from_pretrained(name, dtype=torch.float32)
    if model.config.vocab_size < vocabulary:
        raise ValueError(
            f"model {name} has a vocabulary of {model.config.vocab_size}, the dataset's tokenizer one of {vocabulary}: "
            "prepare the text with the model's own tokenizer (`--tokenizer` of scripts/prepare_text.py)"
        )
    return model
