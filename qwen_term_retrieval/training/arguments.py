"""Every setting of a run: three dataclasses, filled from a YAML recipe and then from flags.

    python scripts/train.py                                   # the `demo` recipe
    python scripts/train.py --recipe laptop --learning_rate 5e-4
    python scripts/train.py --recipe my.yaml --push_to_hub

A default lives in one place: here. A recipe changes defaults for a purpose; a flag changes one for a run.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from qwen_term_retrieval.audio.noise import AugmentationConfig


@dataclass
class ModelArguments:
    """What is trained."""

    model: str | None = field(
        default=None,
        metadata={"help": "Checkpoint to start from (folder or Hub id); the settings below are then its own."},
    )
    audio_tower: str = field(default="openai/whisper-base", metadata={"help": "Hub id or folder of the audio encoder."})
    audio_layers: int = field(default=1, metadata={"help": "How many of the encoder's last layers are mixed."})
    text_tower: str = field(
        default="phonemes:espeak:en-us",
        metadata={"help": "`phonemes:<phonemizer>` or the Hub id or folder of a text encoder."},
    )
    embedding_dim: int = field(default=384, metadata={"help": "Size of the shared embedding space."})
    window_sizes: list[int] | None = field(
        default=None,
        metadata={"help": "Window lengths in encoder frames (Whisper 50, Qwen2-Audio 25 a second); none: whole clip."},
    )
    window_stride: int = field(default=5, metadata={"help": "Encoder frames between window starts."})
    lora_r: int = field(default=0, metadata={"help": "Rank of LoRA in the audio tower; 0 keeps the tower frozen."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scaling numerator."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout in front of LoRA."})


@dataclass
class DataArguments:
    """What it is trained on."""

    dataset: str = field(
        default="builders/term_audio",
        metadata={"help": "Pack, builder folder, corpus folder or Hub id with the splits named below."},
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(default="validation", metadata={"help": "Split that picks the best checkpoint."})
    test_split: str | None = field(default="test", metadata={"help": "Split evaluated once, at the end."})
    glossary: str | None = field(
        default=None, metadata={"help": "Glossary file: gives aliases one identity and widens the evaluation bank."}
    )
    max_clip_seconds: float = field(default=30.0, metadata={"help": "Longer clips are refused, naming the first."})


@dataclass
class TermRetrievalArguments(TrainingArguments):
    """`TrainingArguments` with the objective and defaults of term retrieval."""

    output_dir: str = field(default="outputs/term_retrieval", metadata={"help": "Checkpoints, metrics and the model."})
    audio_text_loss_ratio: float = field(default=0.3, metadata={"help": "Weight of audio against chunk text."})
    audio_term_loss_ratio: float = field(default=0.7, metadata={"help": "Weight of audio against terms."})
    temperature: float = field(default=0.07, metadata={"help": "Initial softmax temperature; learned from there."})
    bank_negatives: int = field(
        default=0,
        metadata={"help": "Terms of the glossary drawn for each clip as further wrong answers; cheap with phonemes."},
    )
    span_jitter: float = field(
        default=0.1, metadata={"help": "Each end of a known term span moves by up to this share of its length."}
    )
    augmentation: dict | str | None = field(
        default=None,
        metadata={
            "help": "Noise, rooms, speed, telephones and gain for training clips: settings of `AugmentationConfig` "
            "(audio/noise.py) as a mapping in a recipe, or as JSON. `{}`: its defaults. Left out: clips as they are."
        },
    )
    patience: int = field(
        default=3, metadata={"help": "Evaluations without a better eval_recall@10 before stopping; 0: never."}
    )
    feature_cache_dir: str | None = field(
        default=None, metadata={"help": "Where frames of a frozen tower are cached; default: the library's cache."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=40, metadata={"help": "Passes over the training clips."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Clips a rank in one contrastive batch."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept, the best among them."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint."})
    metric_for_best_model: str | None = field(default="eval_recall@10", metadata={"help": "What best means."})
    greater_is_better: bool | None = field(default=True, metadata={"help": "More recall is better."})
    resume: bool = field(
        default=False, metadata={"help": "Go on from the last checkpoint in output_dir, or start when there is none."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True,
        metadata={"help": "A resumed run keeps its count of evaluations without progress, and its patience."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Delete an earlier run in output_dir and start anew."})
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "augmentation"]  # noqa: RUF012
    # What the Trainer would otherwise get wrong for this model; see `__post_init__`.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: it would drop the audio."})
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Must stay on: padding the last batch with repeats would break ranks."}
    )

    def __post_init__(self) -> None:
        if self.eval_strategy in ("no", IntervalStrategy.NO):
            self.load_best_model_at_end = False
        super().__post_init__()
        if self.audio_text_loss_ratio < 0 or self.audio_term_loss_ratio < 0:
            raise ValueError("loss ratios must not be negative")
        if not self.audio_text_loss_ratio + self.audio_term_loss_ratio:
            raise ValueError("audio_text_loss_ratio and audio_term_loss_ratio are both 0: nothing would be trained")
        if self.bank_negatives < 0:
            raise ValueError(f"bank_negatives must not be negative, not {self.bank_negatives}")
        if isinstance(self.augmentation, str):
            raise ValueError(f"augmentation must be a mapping, such as '{{}}', not {self.augmentation!r}")
        if self.augmentation is not None:
            AugmentationConfig.from_dict(self.augmentation)
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would drop the audio column; leave it off")
        if not self.dataloader_drop_last:
            raise ValueError("dataloader_drop_last=False would repeat clips on the last batch; leave it on")
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        # One forward touches every tower, so no parameter is ever unused.
        self.ddp_find_unused_parameters = False


def parse_recipe(
    recipes: Path, argv: Sequence[str] | None = None
) -> tuple[ModelArguments, DataArguments, TermRetrievalArguments]:
    """Settings from `--recipe` (a name in the folder `recipes`, or a YAML file; default `demo`), then from flags.

    Raises:
        FileNotFoundError: no such recipe; names those there are.
        ValueError: a key or flag that is no setting; names the file, the key and the nearest setting.
    """
    chooser = argparse.ArgumentParser(add_help=False)
    chooser.add_argument("--recipe", default="demo")
    choice, flags = chooser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    parser = HfArgumentParser(
        [ModelArguments, DataArguments, TermRetrievalArguments],  # type: ignore[list-item]
        description="Train a speech-to-term retriever.",
    )
    parser.add_argument("--recipe", default=choice.recipe, help="Name of a recipe or a YAML file (default demo).")
    path = _find_recipe(choice.recipe, recipes)
    known = {action.dest for action in parser._actions}
    parser.set_defaults(**_read_recipe(path, known))
    model, data, training, _, unknown = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True)
    for flag in unknown:
        _refuse_unknown(flag.removeprefix("--").partition("=")[0], known, "the command line")
    return model, data, training


def _find_recipe(name: str, recipes: Path) -> Path:
    for path in (Path(name), recipes / f"{name}.yaml"):
        if path.is_file():
            return path
    there_are = sorted(path.stem for path in recipes.glob("*.yaml"))
    raise FileNotFoundError(f"no recipe {name!r}: neither a YAML file nor one of {there_are} in {recipes}")


def _read_recipe(path: Path, known: set[str]) -> dict[str, Any]:
    settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected `setting: value` lines")
    for key in settings:
        if key not in known:
            _refuse_unknown(str(key), known, str(path))
    return settings


def _refuse_unknown(key: str, known: set[str], where: str) -> None:
    near = difflib.get_close_matches(key, known, n=1)
    raise ValueError(f"{where}: {key!r} is no setting" + (f"; did you mean {near[0]!r}?" if near else ""))
