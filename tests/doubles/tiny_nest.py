"""Small NEST models, speech of the demo corpus, and trainers of one on the other."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

import qwen_term_retrieval  # noqa: F401  registers the feature and the builder
from qwen_term_retrieval.pretraining.audio import ClipSettings, NestClips, NestConfig, NestForPreTraining
from qwen_term_retrieval.pretraining.audio.arguments import AudioPretrainingArguments
from qwen_term_retrieval.pretraining.audio.trainer import PretrainingTrainer
from qwen_term_retrieval.trainer_callbacks import CodebookUsageCallback, ThroughputCallback

NO_DROPOUT = {"dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0}
ENCODER = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "subsampling_conv_channels": 4, **NO_DROPOUT,
}  # fmt: skip


def tiny_config(encoder: dict[str, Any] | None = None, **settings: Any) -> NestConfig:
    return NestConfig(encoder_config={**ENCODER, **(encoder or {})}, **{"num_codes": 64, **settings})


def tiny_nest(encoder: dict[str, Any] | None = None, **settings: Any) -> NestForPreTraining:
    torch.manual_seed(0)
    return NestForPreTraining(tiny_config(encoder, **settings))


@functools.cache
def demo_rows(split: str = "train", count: int = 96) -> datasets.Dataset:
    """Clips of all lengths and voices."""
    rows = datasets.load_dataset(str(Path(__file__).parents[2] / "builders/term_audio"), split=split)
    return rows.select(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))


def tiny_clips(config: NestConfig, split: str = "train", count: int = 96, **settings: Any) -> NestClips:
    return NestClips(demo_rows(split, count), config, ClipSettings(**settings), f"the demo corpus, {split}")


def tiny_trainer(
    output_dir: Any,
    batch_size: int = 8,
    *,
    model: NestForPreTraining | None = None,
    dtype: torch.dtype = torch.float32,
    callbacks: Any = (),
    clip_settings: dict[str, Any] | None = None,
    **settings: Any,
) -> PretrainingTrainer:
    """A trainer whose every step is logged."""
    torch.set_num_threads(1)
    model = tiny_nest() if model is None else model
    given = {
        "use_cpu": True, "max_steps": 3, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "warmup_steps": 0,
        "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "logging_steps": 1,
        "disable_tqdm": True, "report_to": "none", "check_memory": False,
    }  # fmt: skip
    args = AudioPretrainingArguments(
        output_dir=str(output_dir), per_device_train_batch_size=batch_size, **{**given, **settings}
    )
    train, held_out = (
        tiny_clips(model.config, split, count, **(clip_settings or {}))
        for split, count in (("train", 96), ("validation", 16))
    )
    return PretrainingTrainer(
        model.to(dtype), args, train, held_out,
        callbacks=[CodebookUsageCallback(), ThroughputCallback(), *callbacks],
    )  # fmt: skip
