"""What a run does not do: cut its model up over the processes. Every process holds it whole (DDP)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainingArguments

# The setting, and what `accelerate launch` puts into the environment. On a CPU accelerate 1.15 passes over FSDP and
# DeepSpeed in silence and trains by DDP.
_SHARDED = {
    "FSDP": ("fsdp", "ACCELERATE_USE_FSDP"),
    "DeepSpeed": ("deepspeed", "ACCELERATE_USE_DEEPSPEED"),
    "Megatron-LM": (None, "ACCELERATE_USE_MEGATRON_LM"),
    "a parallelism_config": ("parallelism_config", "ACCELERATE_USE_PARALLELISM_CONFIG"),
}


def refuse_sharding(args: TrainingArguments) -> None:
    """Refuse a launch by anything but DDP, before a process group waits for anybody.

    Hard negatives, recall and the frames of a frozen tower call parts of the model, and call them more often on one
    rank than on another: where ranks must meet in every call, as weights that are cut up demand, they would wait for
    one another for ever. The weights of a sharded model are not those that checkpoints and the guard look at, either.

    Raises:
        ValueError: naming what was asked for, and what to do.
    """
    for name, (setting, variable) in _SHARDED.items():
        if (setting and getattr(args, setting)) or os.environ.get(variable, "").lower() in ("true", "1"):
            raise ValueError(
                f"a run cannot train by {name}, which cuts the model up: hard negatives and recall need it whole on "
                "each process. Launch it by DDP, as configs/accelerate/eight_gpus.yaml does; where a step does not fit "
                "on one GPU, set lora_r, gradcache_chunk or activation_checkpointing"
            )
