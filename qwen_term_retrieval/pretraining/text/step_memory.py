"""What a step of a text pre-training needs: a few of the longest texts are run, and the line through them read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from qwen_term_retrieval.distributed import world_size
from qwen_term_retrieval.pretraining.text.losses import summed_loss
from qwen_term_retrieval.runs.memory import GB, StepMemory, model_memory, peak_memory, require_memory
from qwen_term_retrieval.tokens.mmap_pairs import PairBatch

_MEASURED = 2


def check_memory(trainer: Any) -> StepMemory:
    """Say what a step of this rank needs, or refuse the run on every rank; see `require_memory`."""
    args, model = trainer.args, trainer.text_model
    num_pairs = trainer.order.global_batch_size // world_size()

    def loss_of(size: int) -> torch.Tensor:
        inputs = trainer.inputs_of(_longest_pairs(size, args.max_seq_len, model.config.vocab_size))
        with trainer.accelerator.autocast():
            return summed_loss(model, {name: values.to(args.device) for name, values in inputs.items()})

    def measure() -> StepMemory:
        peak_of = peak_memory(model, loss_of, _MEASURED)
        parts = model_memory(model, args.optim) | {"forward, backward and logits": peak_of(num_pairs)}
        return StepMemory(f"{num_pairs} pairs", "", parts, lambda free: _remedies(parts, peak_of, num_pairs, free))

    advice = "Use a smaller max_seq_len or model, or gradient_checkpointing"
    return require_memory(measure, args.device, few=f"{2 * _MEASURED} pairs", advice=advice)


def _remedies(parts: dict[str, float], peak_of: Any, num_pairs: int, free: float) -> list[str]:
    fixed = sum(parts.values()) - parts["parameters"] - peak_of(num_pairs)
    fitting = [size for size in (num_pairs // 2, num_pairs // 4, num_pairs // 8, 1) if fixed + peak_of(size) <= free]
    if not fitting:
        return ["not one pair fits: use a smaller model or max_seq_len"]
    return [
        f"per_device_train_batch_size {fitting[0]} needs {(fixed + peak_of(fitting[0])) / GB:.2f} GB; raise "
        "gradient_accumulation_steps as much"
    ]


def _longest_pairs(size: int, length: int, vocabulary: int) -> PairBatch:
    """Pairs as long as they may be; the ids spell nothing."""
    ids_BL = np.full((size, length), vocabulary - 1, np.int32)
    length_B = np.full(size, length, np.int64)
    return PairBatch(ids_BL, length_B, ids_BL, length_B)
