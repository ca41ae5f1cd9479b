"""Every setting of a text pre-training: three dataclasses, filled from a YAML recipe and then from flags.

A default lives in one place: here. `own_names` lets the flags of the system before this one stand for ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qwen_term_retrieval.runs.arguments import RunArguments

ARCHITECTURES = ("t5", "qwen3")
LOSSES = ("response", "all")
# What the launch lines of the system before this one say, and what it is called here.
ALIASES = {
    "batch_size_per_gpu": "per_device_train_batch_size",
    "learn_rate": "learning_rate",
    "epochs": "num_train_epochs",
    "is_keep_training": "resume",
}
_SUBCOMMAND = "train"
_ITS_RECIPE = "text_10m"


@dataclass
class TextModelArguments:
    """What is trained."""

    model: str | None = field(
        default=None, metadata={"help": "Checkpoint to go on from (folder or Hub id), with an architecture of its own."}
    )
    architecture: str = field(
        default="t5",
        metadata={"help": "`t5`, an encoder-decoder whose encoder can be a text tower, or `qwen3`, a decoder."},
    )
    hidden_size: int = field(default=768, metadata={"help": "Width of the model."})
    intermediate_size: int = field(default=3072, metadata={"help": "Width of its feed-forward layers."})
    num_layers: int = field(default=10, metadata={"help": "Layers; of T5 as many in the encoder as in the decoder."})
    num_heads: int = field(default=12, metadata={"help": "Heads of attention; they divide hidden_size."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout; of `qwen3` in the attention alone."})

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {self.architecture!r}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide hidden_size {self.hidden_size}")


@dataclass
class TextDataArguments:
    """What it is trained on."""

    dataset: str = field(
        default="data/text_demo", metadata={"help": "Folder that `scripts/prepare_text.py` or `prepare_text` made."}
    )


@dataclass
class TextPretrainingArguments(RunArguments):
    """`TrainingArguments` with the defaults of text pre-training."""

    output_dir: str = field(default="outputs/text", metadata={"help": "Checkpoints, metrics, the log and the model."})
    max_seq_len: int = field(
        default=192, metadata={"help": "Tokens of a prompt and of a response, at most, the end token among them."}
    )
    loss_on: str = field(
        default="response", metadata={"help": "Of a decoder: learn the `response`, or `all`, prompts too."}
    )
    row_length: int = field(
        default=1024, metadata={"help": "Of a decoder: tokens of a row that documents are packed into, at most."}
    )
    pool_batches: int = field(
        default=1024, metadata={"help": "Global micro-batches that are sorted by length together; more pad less."}
    )
    max_eval_pairs: int = field(
        default=20_000, metadata={"help": "Validation pairs of an evaluation, the same each time; 0: all of them."}
    )
    num_generations: int = field(default=3, metadata={"help": "Answers generated at an evaluation, to be read."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Pairs of a micro-batch on each rank."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Pairs of a batch in evaluation."})
    gradient_accumulation_steps: int = field(default=2, metadata={"help": "Micro-batches of an optimizer step."})
    learning_rate: float = field(default=1e-4, metadata={"help": "At the end of the warm-up."})
    warmup_steps: float = field(default=1024, metadata={"help": "Steps in which the rate rises; below 1: a share."})
    num_train_epochs: float = field(default=3, metadata={"help": "Passes over the pairs."})
    logging_steps: float = field(default=100, metadata={"help": "Steps between log lines."})
    save_steps: float = field(default=5000, metadata={"help": "Steps between checkpoints."})
    save_strategy: str = field(default="steps", metadata={"help": "When to write a checkpoint."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate."})
    eval_steps: float | None = field(default=None, metadata={"help": "Steps between evaluations; none: save_steps."})
    metric_for_best_model: str | None = field(default="loss", metadata={"help": "Which evaluation is the best."})
    greater_is_better: bool | None = field(default=False, metadata={"help": "Whether a larger metric is better."})
    patience: int = field(default=0, metadata={"help": "Evaluations without a better one before stopping; 0: never."})

    def __post_init__(self) -> None:
        if self.eval_steps is None:
            self.eval_steps = self.save_steps
        super().__post_init__()
        if self.max_batch_seconds is not None:
            raise ValueError("max_batch_seconds counts audio; batches of text have a number of pairs")
        if self.loss_on not in LOSSES:
            raise ValueError(f"loss_on must be one of {', '.join(LOSSES)}, not {self.loss_on!r}")
        for name in ("max_eval_pairs", "num_generations"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.pool_batches < 1:
            raise ValueError(f"pool_batches must be positive, not {self.pool_batches}")


TEXT_PRETRAINING = (TextModelArguments, TextDataArguments, TextPretrainingArguments)


def own_names(argv: Sequence[str]) -> list[str]:
    """Flags of the system before this one by our names; its word `train` stands for its recipe, unless one is named.

    >>> own_names(["train", "--batch_size_per_gpu=24", "--is_keep_training=True"])
    ['--recipe=text_10m', '--per_device_train_batch_size=24', '--resume=True']
    """
    flags = list(argv)
    if flags[:1] == [_SUBCOMMAND]:
        named = any(flag.partition("=")[0] == "--recipe" for flag in flags)
        flags[:1] = [] if named else [f"--recipe={_ITS_RECIPE}"]
    for place, flag in enumerate(flags):
        name, equals, value = flag.removeprefix("--").partition("=")
        if flag.startswith("--") and name in ALIASES:
            flags[place] = f"--{ALIASES[name]}{equals}{value}"
    return flags
