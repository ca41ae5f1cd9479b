"""What a step of an audio pre-training needs: a few of the longest clips are run, and the line through them read."""

from __future__ import annotations

from typing import Any

import torch

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.runs.memory import GB, StepMemory, model_memory, peak_memory, require_memory

_MEASURED = 2


def check_memory(trainer: Any) -> StepMemory:
    """Say what the largest step of this rank needs, or refuse the run on every rank; see `require_memory`."""
    args, model = trainer.args, trainer.nest_model
    num_clips, seconds = trainer.largest_batch()

    def loss_of(size: int) -> torch.Tensor:
        num_samples_B = torch.full((size,), round(seconds * SAMPLING_RATE))
        pcm_BS = torch.zeros(size, int(num_samples_B[0]), dtype=torch.int16, device=args.device)
        mask = model.mask(num_samples_B, list(range(size)))
        with trainer.accelerator.autocast():
            return model(pcm_BS, num_samples_B.to(args.device), noisy_pcm_BS=pcm_BS, mask=mask).loss

    def measure() -> StepMemory:
        peak_of = peak_memory(model, loss_of, _MEASURED)
        parts = model_memory(model, args.optim) | {"forward and backward": peak_of(num_clips)}
        batch = f"{num_clips} clips of {seconds:.1f} s"
        return StepMemory(batch, "", parts, lambda free: _remedies(parts, peak_of, num_clips, free))

    advice = "Use a smaller size, gradient_checkpointing, or leave out long clips"
    return require_memory(measure, args.device, few=f"{2 * _MEASURED} clips", advice=advice)


def _remedies(parts: dict[str, float], peak_of: Any, num_clips: int, free: float) -> list[str]:
    fixed = sum(parts.values()) - parts["parameters"] - peak_of(num_clips)
    fitting = [size for size in (num_clips // 2, num_clips // 4, num_clips // 8, 1) if fixed + peak_of(size) <= free]
    if not fitting:
        return ["not one clip fits: use a smaller size, or leave out long clips"]
    return [
        f"{fitting[0]} clips a rank need {(fixed + peak_of(fitting[0])) / GB:.2f} GB: lower max_batch_seconds or "
        "per_device_train_batch_size, and raise gradient_accumulation_steps as much"
    ]
