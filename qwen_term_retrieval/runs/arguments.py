"""Settings of a run of any of our trainers: `TrainingArguments`, and what our pieces add to them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from qwen_term_retrieval.runs.trackers import check_trackers
from qwen_term_retrieval.runs.unsupported import refuse_sharding, refuse_unread


@dataclass
class RunArguments(TrainingArguments):
    """What the samplers, the loader, the guard, patience, checkpoints and the Hub are told.

    Attributes:
        recorded: what trackers are told of the run beside these settings: recipe, model, data.
    """

    recorded: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    check_memory: bool = field(
        default=True,
        metadata={
            "help": "Estimate the peak memory of a step before the first, and refuse a run that would not fit; False "
            "takes what comes."
        },
    )
    skip_nonfinite_steps: bool = field(
        default=True,
        metadata={"help": "Skip a step on all ranks when a loss or gradient of any is not finite; counted and logged."},
    )
    max_nonfinite_steps: int = field(
        default=25, metadata={"help": "Skipped steps of a run after which the next one stops it with an error."}
    )
    max_batch_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Seconds of audio in a global batch, padding included, in place of a number of clips: few long "
            "clips or many short ones, in multiples of 8."
        },
    )
    patience: int = field(
        default=3,
        metadata={
            "help": "Evaluations without a better eval_recall@10, or MRR where that is the same, before stopping; 0: "
            "never, as without load_best_model_at_end."
        },
    )
    save_every_epochs: int = field(
        default=1, metadata={"help": "Epochs from one checkpoint to the next; the best and the last are saved anyway."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept, the best among them."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint."})
    resume: bool = field(
        default=False, metadata={"help": "Go on from the last checkpoint in output_dir, or start when there is none."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True,
        metadata={"help": "A resumed run keeps its count of evaluations without progress, and its patience."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Delete an earlier run in output_dir and start anew."})
    dataloader_persistent_workers: bool = field(
        default=True, metadata={"help": "Workers that build batches outlive an epoch and run on into the next."}
    )
    ddp_timeout: int = field(
        default=3 * 3600,
        metadata={"help": "Seconds a process waits for another, such as one that still computes frozen frames."},
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint."})
    # What the Trainer would otherwise get wrong for our batches; see `__post_init__`.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: it would drop the audio."})
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Must stay on: padding the last batch with repeats would break ranks."}
    )

    def __post_init__(self) -> None:
        refuse_sharding(self)
        if self.eval_strategy in ("no", IntervalStrategy.NO):
            self.load_best_model_at_end = False
        super().__post_init__()
        refuse_unread(self)
        if self.resume and self.overwrite:
            raise ValueError("resume goes on with an earlier run, overwrite deletes it: give one of the two")
        check_trackers(self.report_to or [])
        for name in ("patience", "max_nonfinite_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would drop the audio column; leave it off")
        if not self.dataloader_drop_last:
            raise ValueError("dataloader_drop_last=False would repeat clips on the last batch; leave it on")
        # The filter shows the mean of the steps before in place of a NaN: only where the guard has counted it.
        self.logging_nan_inf_filter = self.logging_nan_inf_filter and self.skip_nonfinite_steps
        if self.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU:
            # The default of the scheduler waits for recall to fall.
            mode = "max" if self.greater_is_better else "min"
            given = self.lr_scheduler_kwargs
            self.lr_scheduler_kwargs = {"mode": mode} | (given if isinstance(given, dict) else {})
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        self.dataloader_persistent_workers = self.dataloader_persistent_workers and self.dataloader_num_workers > 0
        # One forward touches every part of a model of ours, so no parameter is ever unused.
        self.ddp_find_unused_parameters = False

    def check_objective(self) -> None:
        """Raise a ValueError that names the first setting that cannot be, of those that a trial may change."""
        if self.max_batch_seconds is not None and self.max_batch_seconds <= 0:
            raise ValueError(f"max_batch_seconds must be positive, not {self.max_batch_seconds}")

    def record(self, *others: Any) -> None:
        """Tell trackers of these settings too."""
        for settings in others:
            self.recorded |= {each.name: getattr(settings, each.name) for each in fields(settings) if each.init}

    def to_dict(self) -> dict[str, Any]:
        """What `report_to` shows of a run, secrets masked."""
        return {**self.recorded, **super().to_dict()}

    @property
    def steps_built_ahead(self) -> int:
        """How many optimizer steps before its own a batch may be built, at most; see `EpochLoader`.

        As many as batches, also with accumulation: an epoch's last step may have only one.
        """
        return self.dataloader_num_workers * (self.dataloader_prefetch_factor or 2)


def json_mapping(name: str, text: str) -> dict[str, Any]:
    """A setting that is a mapping, from a flag.

    Raises:
        ValueError: it is no JSON, or no mapping; names the setting.
    """
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: not JSON: {error}: {text!r}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{name} must be a mapping, such as '{{}}', not {text!r}")
    return settings
