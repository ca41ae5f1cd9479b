"""The private parts of `transformers` that this library leans on; the only file to change when one of them moves.

`transformers` promises nothing about names with an underscore: an override that it no longer calls would be passed over
in silence, and a run would push unfinished folders or resume over other data. So they stand here, with what is done
through each, and a trainer compares them with the installed version before it begins.
"""

from __future__ import annotations

import functools
import inspect

import transformers
from transformers import PreTrainedConfig, PreTrainedModel, Trainer

# Methods of `Trainer` that our trainers override, and their parameters; None where they hand them on.
TRAINER_OVERRIDES: dict[str, tuple[str, ...] | None] = {
    "_prepare_inputs": ("inputs",),  # distorts clips on the device
    "_get_train_sampler": ("train_dataset",),  # batches that are a function of (seed, epoch, position)
    "_determine_best_metric": ("metrics", "trial"),  # ties by MRR
    "_run_epoch": None,  # a run that was resumed at its end
    "_save": ("output_dir", "state_dict"),  # the card, and what a checkpoint was trained on
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),  # refuses other data
    "_load_callback_state": (),  # makes new callbacks of those that count
    "_push_from_checkpoint": ("checkpoint_folder",),  # whole models with a card
    "_finish_current_push": (),
    "_hp_search_setup": ("trial",),  # trials that do not see each other
}
# What `Trainer` keeps under these names is read, or set back after a search.
TRAINER_ATTRIBUTES = ("_train_batch_size", "_trial")
# Which weights are saved and missed, and which attention a model takes.
MODEL_ATTRIBUTES = (
    "_keys_to_ignore_on_load_missing",
    "_keys_to_ignore_on_save",
    "_no_split_modules",
    "_supports_flash_attn",
    "_supports_sdpa",
)
CONFIG_ATTRIBUTES = ("_attn_implementation",)
# What adapters of audio towers call.
ENCODER_METHODS = {
    "transformers.models.parakeet.modeling_parakeet.ParakeetEncoder": (
        "_get_output_attention_mask",
        "_get_subsampling_output_length",
    ),
}


class IncompatibleTransformersError(ImportError):
    """The installed `transformers` has moved what this library overrides."""


def moved_internals() -> list[str]:
    """What the installed version has otherwise than it stands here, in words; empty where all is in its place."""
    source = inspect.getsource(inspect.getmodule(Trainer) or Trainer)
    moved = []
    for name, parameters in TRAINER_OVERRIDES.items():
        method = getattr(Trainer, name, None)
        found = () if method is None else tuple(inspect.signature(method).parameters)[1:]
        if method is None or found != (found if parameters is None else parameters):
            now = "is gone" if method is None else f"takes {', '.join(found) or 'nothing'}"
            moved.append(f"Trainer.{name} {now}")
    moved += [f"Trainer.{name} is gone" for name in TRAINER_ATTRIBUTES if f"self.{name}" not in source]
    moved += [f"PreTrainedModel.{name} is gone" for name in MODEL_ATTRIBUTES if not hasattr(PreTrainedModel, name)]
    moved += [f"PreTrainedConfig.{name} is gone" for name in CONFIG_ATTRIBUTES if not hasattr(PreTrainedConfig, name)]
    return moved


@functools.cache
def check_internals() -> None:
    """See that the installed `transformers` is one that this library knows.

    Raises:
        IncompatibleTransformersError: naming what has moved, and the remedy.
    """
    if moved := moved_internals():
        raise IncompatibleTransformersError(
            f"transformers {transformers.__version__}: {'; '.join(moved)}. Install a version that this library was "
            "tested with (constraints.txt), or adapt qwen_term_retrieval/transformers_internals.py."
        )
