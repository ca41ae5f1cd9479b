"""Every setting of an audio pre-training: three dataclasses, filled from a YAML recipe and then from flags.

A default lives in one place: here. Those of the optimizer are NEST's: AdamW (.9, .98), no clipping, and its Noam
schedule, 5 d^-1/2 min(t^-1/2, t 25000^-3/2), by the name of transformers: `inverse_sqrt` after 25,000 steps of warm-up,
with a peak of 1.4e-3 at a width of 512.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qwen_term_retrieval.pretraining.audio.configuration import MASK_POSITIONS, SIZES
from qwen_term_retrieval.pretraining.audio.data import ClipSettings
from qwen_term_retrieval.runs.arguments import RunArguments, json_mapping


@dataclass
class NestModelArguments:
    """What is trained.

    Attributes:
        given: the settings that a recipe or a flag names, be it with their defaults.
    """

    given: frozenset[str] = field(default=frozenset(), init=False, repr=False, compare=False)
    model: str | None = field(
        default=None,
        metadata={"help": "Checkpoint to go on from: a folder, a Hub id, or a `.nemo` file; its settings are its own."},
    )
    size: str = field(
        default="S",
        metadata={"help": "Encoder: `demo` (4M parameters), `S` (12M), `M` (26M), `L` (109M), `XL` (600M)."},
    )
    encoder: dict | str | None = field(
        default=None,
        metadata={"help": "Settings of `ParakeetEncoderConfig` that differ from those of the size, or as JSON."},
    )
    dropout: float = field(default=0.1, metadata={"help": "Dropout of the encoder, in attention too."})
    num_books: int = field(default=1, metadata={"help": "Codebooks: targets of a token."})
    num_codes: int = field(default=8192, metadata={"help": "Codes of a book."})
    frequency_head: bool = field(
        default=False,
        metadata={"help": "Begin with a head that says each code as often as it comes: small runs learn sooner so."},
    )
    normalize_input: bool = field(
        default=False,
        metadata={"help": "Normalise each window before it becomes a token: more codes are used; not NEST's tokens."},
    )
    quantizer_seed: int = field(
        default=0, metadata={"help": "Draws projection and codes: one seed, one set of tokens, whatever the model."}
    )
    block_frames: int = field(default=40, metadata={"help": "Mel frames (10 ms) of a hidden block."})
    mask_probability: float = field(default=0.01, metadata={"help": "That a block begins at a mel frame."})
    min_blocks: int = field(
        default=1, metadata={"help": "Blocks of a clip, at least; 0: as NeMo, where short clips often have none."}
    )
    mask_position: str = field(
        default="before", metadata={"help": "Hide mel frames `before` the subsampling, or encoder frames `after` it."}
    )

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, not {self.size!r}")
        if self.mask_position not in MASK_POSITIONS:
            raise ValueError(f"mask_position must be one of {', '.join(MASK_POSITIONS)}, not {self.mask_position!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")
        if isinstance(self.encoder, str):
            self.encoder = json_mapping("encoder", self.encoder)


@dataclass
class AudioDataArguments:
    """What it is trained on: any pack, folder of audio or Hub dataset; labels are not looked at."""

    dataset: str = field(
        default="builders/term_audio", metadata={"help": "Pack, builder folder, folder of audio, or Hub id."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(
        default="validation",
        metadata={"help": "Split that picks the best checkpoint; where there is none, eval_share is held out."},
    )
    eval_share: float = field(
        default=0.02, metadata={"help": "Share of the training clips held out, by their keys, without an eval_split."}
    )
    min_seconds: float = field(default=1.0, metadata={"help": "Shorter clips are made as long as this."})
    padding: str = field(default="repeat", metadata={"help": "By being repeated (`repeat`) or by silence (`zero`)."})
    max_clip_seconds: float = field(default=60.0, metadata={"help": "Longer clips are refused, naming the first."})
    denoise: bool = field(default=True, metadata={"help": "Hear clips under noise; False: clean speech alone."})
    augmentation: dict | str | None = field(
        default=None,
        metadata={
            "help": "How clips are heard: settings of `AugmentationConfig`, as a mapping or JSON. Left out, as NEST: "
            "half of the clips, over half of their length, under another talker or noise."
        },
    )

    def __post_init__(self) -> None:
        if isinstance(self.augmentation, str):
            self.augmentation = json_mapping("augmentation", self.augmentation)
        if not self.denoise and self.augmentation:
            raise ValueError("denoise False hears clean speech alone: leave augmentation out")
        if not 0 < self.eval_share < 1:
            raise ValueError(f"eval_share must lie between 0 and 1, not {self.eval_share}")
        self.clip_settings()

    def clip_settings(self) -> ClipSettings:
        """What clips are made into."""
        augmentation: Any = (self.augmentation or {}) if self.denoise else None
        return ClipSettings(self.min_seconds, self.padding, self.max_clip_seconds, augmentation)


@dataclass
class AudioPretrainingArguments(RunArguments):
    """`TrainingArguments` with the defaults of NEST."""

    output_dir: str = field(default="outputs/nest", metadata={"help": "Checkpoints, metrics, the log and the model."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Clips of a micro-batch on each rank."})
    max_eval_clips: int = field(default=2000, metadata={"help": "Clips of an evaluation, the same each time; 0: all."})
    learning_rate: float = field(default=2.4e-3, metadata={"help": "At the end of the warm-up; 5 (d · 25000)^-1/2."})
    lr_scheduler_type: str = field(default="inverse_sqrt", metadata={"help": "How it goes on from there."})
    warmup_steps: float = field(default=25_000, metadata={"help": "Steps in which the rate rises; below 1: a share."})
    weight_decay: float = field(default=1e-3, metadata={"help": "Of AdamW, on matrices."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Of AdamW."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Longer gradients are cut to it; 0: none is."})
    max_steps: int = field(default=500_000, metadata={"help": "Steps of the run; -1: num_train_epochs counts."})
    logging_steps: float = field(default=100, metadata={"help": "Steps between log lines."})
    save_steps: float = field(default=2500, metadata={"help": "Steps between checkpoints."})
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
        self.check_objective()
        if self.max_eval_clips < 0:
            raise ValueError(f"max_eval_clips must not be negative, not {self.max_eval_clips}")


AUDIO_PRETRAINING = (NestModelArguments, AudioDataArguments, AudioPretrainingArguments)
