"""What `TrainingArguments` and `accelerate launch` can ask for, and a run does not do: refused, not passed over."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qwen_term_retrieval.distributed import world_size

if TYPE_CHECKING:
    from transformers import TrainingArguments

# What a run does not read; what to do instead.
_NOT_READ = {
    "resume_from_checkpoint": "--resume goes on from the last checkpoint in output_dir",
    "do_train": "a run always trains",
    "do_predict": "a run ends with the test_split, if there is one",
    "train_sampling_strategy": "clips come in random order, or with --max_batch_seconds those of like length together",
    "label_smoothing_factor": "the losses compare clips with terms and have no labels to smooth",
    "bf16_full_eval": "evaluation computes as training does: --bf16",
    "fp16_full_eval": "evaluation computes as training does: --fp16",
    "eval_accumulation_steps": "evaluation keeps ranks, not logits",
}
# The setting, and what `accelerate launch` puts into the environment. On a CPU accelerate 1.15 passes over FSDP and
# DeepSpeed in silence and trains by DDP.
_SHARDED = {
    "FSDP": ("fsdp", "ACCELERATE_USE_FSDP"),
    "DeepSpeed": ("deepspeed", "ACCELERATE_USE_DEEPSPEED"),
    "Megatron-LM": (None, "ACCELERATE_USE_MEGATRON_LM"),
    "a parallelism_config": ("parallelism_config", "ACCELERATE_USE_PARALLELISM_CONFIG"),
}


def refuse_unread(args: TrainingArguments) -> None:
    """Refuse settings that would change nothing.

    Raises:
        ValueError: naming the first, and what to do instead.
    """
    for name, remedy in _NOT_READ.items():
        if getattr(args, name) != args.__dataclass_fields__[name].default:
            raise ValueError(f"{name} would change nothing: {remedy}")


def refuse_launch(args: TrainingArguments) -> None:
    """Refuse processes that are not one a GPU, or fewer than were asked for, before anything costly starts.

    Raises:
        RuntimeError: says how to launch instead.
    """
    # `accelerate launch --cpu --num_processes 2` starts one process and says nothing (accelerate 1.15).
    if args.world_size != world_size():
        raise RuntimeError(f"{args.world_size} processes were asked for but {world_size()} run: launch with torchrun")
    if args.n_gpu > 1:
        raise RuntimeError(
            f"one process sees {args.n_gpu} GPUs, and `DataParallel` would cut batches apart from their queries: "
            "launch one process a GPU with torchrun or `accelerate launch`, or set CUDA_VISIBLE_DEVICES"
        )


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
