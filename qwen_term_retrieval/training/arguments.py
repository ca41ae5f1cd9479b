"""Every setting of a run: three dataclasses, which `runs/recipes.py` fills from a YAML recipe and then from flags.

A default lives in one place: here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen_term_retrieval.augmentation.config import AugmentationConfig
from qwen_term_retrieval.losses.objective import LOSSES, WINDOW_REDUCTIONS, Objective
from qwen_term_retrieval.runs.arguments import RunArguments, json_mapping


@dataclass
class ModelArguments:
    """What is trained.

    Attributes:
        given: the settings that a recipe or a flag names, be it with their defaults.
    """

    given: frozenset[str] = field(default=frozenset(), init=False, repr=False, compare=False)
    model: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to start from (folder or Hub id); towers and heads are then its own, but LoRA is "
            "added to a tower that has none."
        },
    )
    audio_tower: str = field(default="openai/whisper-base", metadata={"help": "Hub id or folder of the audio encoder."})
    audio_layers: int = field(default=1, metadata={"help": "How many of the encoder's last layers are mixed."})
    text_tower: str = field(
        default="phonemes:espeak:en-us",
        metadata={
            "help": "`phonemes:<phonemizer>`, the Hub id or folder of a text encoder, or both joined by ` + ` (quoted)."
        },
    )
    text_tower_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "Further settings of the text tower, as a mapping in a recipe or as JSON: of phonemes those of "
            '`PhonemeEncoderConfig`, such as `{"languages": {"fr": "espeak:fr"}}`; of a sum, these under `sound`.'
        },
    )
    text_pooling: str = field(
        default="auto",
        metadata={"help": "Tokens of a text encoder to one vector: `cls`, `mean`, `last`, `pyramid`, or `auto`."},
    )
    pooling: str = field(
        default="pyramid",
        metadata={
            "help": "Frames of a span to one vector: their means in order (`pyramid`), one mean (`mean`), or means "
            "weighted by what the model learns (`attention`)."
        },
    )
    embedding_dim: int = field(default=384, metadata={"help": "Size of the shared embedding space."})
    window_sizes: list[int] | None = field(
        default=None,
        metadata={"help": "Window lengths in encoder frames (Whisper 50, Qwen2-Audio 25 a second); none: whole clip."},
    )
    window_stride: int = field(default=5, metadata={"help": "Encoder frames between window starts."})
    train_audio_tower: bool = field(
        default=False,
        metadata={"help": "Train all of the audio tower's weights, batch normalisation included, in place of LoRA."},
    )
    lora_r: int = field(default=0, metadata={"help": "Rank of LoRA in the audio tower; 0 keeps the tower frozen."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scaling numerator."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout in front of LoRA."})
    text_lora_r: int = field(default=0, metadata={"help": "Rank of LoRA in a pretrained text tower; 0: none."})
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "Attention of the towers: `sdpa`, `flash_attention_2`, `eager`; none: the best."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.text_tower_config, str):
            self.text_tower_config = json_mapping("text_tower_config", self.text_tower_config)
        for name in ("lora_r", "text_lora_r"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.train_audio_tower and self.lora_r:
            raise ValueError("train_audio_tower trains all weights, lora_r adapters beside them: give one of the two")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must lie in [0, 1), not {self.lora_dropout}")


@dataclass
class DataArguments:
    """What it is trained on."""

    dataset: str = field(
        default="builders/term_audio",
        metadata={"help": "Pack, builder folder, corpus folder or Hub id with the splits named below."},
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(default="validation", metadata={"help": "Split that picks the best checkpoint."})
    eval_fraction: float = field(
        default=0.1,
        metadata={"help": "How much of the training split is held out where the data has no `eval_split`."},
    )
    test_split: str | None = field(
        default="test", metadata={"help": "Split evaluated once, at the end; none where the data has no such split."}
    )
    glossary: str | None = field(
        default=None, metadata={"help": "Glossary file: gives aliases one identity and widens the evaluation bank."}
    )
    max_clip_seconds: float = field(default=30.0, metadata={"help": "Longer clips are refused, naming the first."})

    def __post_init__(self) -> None:
        if not self.train_split:
            raise ValueError("train_split must name a split: there is nothing to train on without it")


@dataclass
class TermRetrievalArguments(RunArguments):
    """`TrainingArguments` with the objective and defaults of term retrieval."""

    output_dir: str = field(default="outputs/term_retrieval", metadata={"help": "Checkpoints, metrics and the model."})
    loss: str = field(
        default="infonce",
        metadata={"help": "`infonce`, or `sigmoid` (SigLIP): pairs judged one by one, with a learned bias."},
    )
    audio_text_loss_ratio: float = field(default=0.3, metadata={"help": "Weight of audio against chunk text."})
    audio_term_loss_ratio: float = field(default=0.7, metadata={"help": "Weight of audio against terms."})
    temperature: float | None = field(
        default=None,
        metadata={"help": "Initial softmax temperature, learned from there; none: 0.07, or what `model` has learned."},
    )
    sigmoid_bias: float | None = field(
        default=None,
        metadata={"help": "Initial bias of the sigmoid loss, learned from there; none: -10, or what `model` has."},
    )
    window_reduction: str = field(
        default="argmax",
        metadata={"help": "Windows of a clip of unknown term spans: the best (`argmax`) or a soft best (`logsumexp`)."},
    )
    window_temperature: float = field(
        default=0.05, metadata={"help": "Softness of `--window_reduction logsumexp`, in cosines; towards 0: argmax."}
    )
    enable_hard_neg: bool = field(
        default=False,
        metadata={"help": "Compare each clip with hard negatives of its own, mined by the model as it learns."},
    )
    hard_neg_k: int = field(default=10, metadata={"help": "Hard negatives of a clip in one step, at most."})
    hard_neg_weight: float = field(default=0.2, metadata={"help": "Weight of the loss on hard negatives."})
    hard_neg_refresh_steps: int = field(
        default=200, metadata={"help": "Steps from one mining to the next; the first comes before the first step."}
    )
    hard_neg_max_positive_ratio: float = field(
        default=0.95,
        metadata={"help": "A term that scores above this share of the right term's score is too near to be wrong."},
    )
    hard_neg_phonetic_ratio: float = field(
        default=0.0,
        metadata={"help": "Share of hard negatives that sound like the clip's terms, by edit distance of phonemes."},
    )
    hard_neg_phonemizer: str = field(
        default="espeak:en-us",
        metadata={"help": "Phonemizer of `--hard_neg_phonetic_ratio`; a text tower of several languages uses its own."},
    )
    no_term_weight: float = field(
        default=0.0, metadata={"help": "Weight of pushing terms away from clips in which none is said; 0: off."}
    )
    no_term_margin: float = field(
        default=0.2, metadata={"help": "Cosine that the terms of a clip without a term are pushed below."}
    )
    phoneme_loss_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of hearing what is said, sound by sound: trains the phoneme head, which is made where the "
            "model has none; 0: off."
        },
    )
    phoneme_head_alone: bool = field(
        default=False,
        metadata={"help": "Train the phoneme head and nothing else, on cached frames; see the recipe `phoneme_head`."},
    )
    contrastive_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Clips of all ranks in one contrastive batch: sets per_device_train_batch_size to its share of a "
            "rank. Give one of the two; where both are given they must agree. With gradcache_chunk it may be far "
            "larger than memory: gradient accumulation adds no negatives, this does."
        },
    )
    gradcache_chunk: int | None = field(
        default=None,
        metadata={
            "help": "Clips that a rank holds the graph of at a time (GradCache): the same gradients for a second "
            "forward pass. Left out, or no less than a rank's batch: the whole batch at once."
        },
    )
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
            "help": "Noise, talkers, rooms, speed, telephones, silence and gain for training clips: settings of "
            "`AugmentationConfig` in augmentation/config.py, as a mapping in a recipe or as JSON; `{}`: its "
            "defaults; left out: none."
        },
    )
    frame_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Where frames of a frozen tower are cached; default: the library's cache.",
            "aliases": ["--feature_cache_dir"],
        },
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=40, metadata={"help": "Passes over the training clips."})
    per_device_train_batch_size: int | None = field(  # type: ignore[assignment]  # a number from `__post_init__` on
        default=None,
        metadata={
            "help": "Clips of a rank in one contrastive batch; default 128, or its share of contrastive_batch_size."
        },
    )
    metric_for_best_model: str | None = field(default="eval_recall@10", metadata={"help": "What best means."})
    greater_is_better: bool | None = field(default=True, metadata={"help": "More recall is better."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_batch_size()
        self.check_objective()
        if self.phoneme_head_alone and not self.phoneme_loss_weight:
            raise ValueError("phoneme_head_alone with a phoneme_loss_weight of 0: nothing would be trained")
        if not self.audio_text_loss_ratio + self.audio_term_loss_ratio and not self.phoneme_head_alone:
            raise ValueError(
                "audio_text_loss_ratio and audio_term_loss_ratio are both 0: nothing would be trained but, with "
                "phoneme_head_alone, the phoneme head"
            )
        if self.bank_negatives < 0:
            raise ValueError(f"bank_negatives must not be negative, not {self.bank_negatives}")
        if not 0 <= self.span_jitter < 0.5:
            raise ValueError(f"span_jitter must lie in [0, 0.5), where spans keep a length, not {self.span_jitter}")
        if isinstance(self.augmentation, str):
            self.augmentation = json_mapping("augmentation", self.augmentation)
        if self.augmentation is not None:
            AugmentationConfig.from_dict(self.augmentation)

    def _set_batch_size(self) -> None:
        """Make `per_device_train_batch_size` a number: its own, or a rank's share of `contrastive_batch_size`."""
        total, ranks = self.contrastive_batch_size, self.world_size
        if total is not None:
            if total < ranks or total % ranks:
                raise ValueError(
                    f"contrastive_batch_size {total} cannot be shared out evenly over {ranks} ranks; "
                    f"the nearest that can is {max(1, round(total / ranks)) * ranks}"
                )
            share = total // ranks
            if self.per_device_train_batch_size not in (None, share):
                raise ValueError(
                    f"contrastive_batch_size {total} is {share} clips on each of {ranks} ranks, but "
                    f"per_device_train_batch_size is {self.per_device_train_batch_size}: give one of the two, or "
                    f"both as {total} and {share}"
                )
            if self.auto_find_batch_size:
                raise ValueError(
                    "auto_find_batch_size would change contrastive_batch_size; set gradcache_chunk, which saves memory "
                    "and leaves the batch as it is"
                )
            self.per_device_train_batch_size = share
        if self.per_device_train_batch_size is None:
            self.per_device_train_batch_size = 128
        if self.gradcache_chunk is not None and self.gradcache_chunk < 1:
            raise ValueError(f"gradcache_chunk must be at least 1, not {self.gradcache_chunk}")

    def check_objective(self) -> None:
        """Raise a ValueError that names the first setting of the loss that cannot be."""
        for name in (
            "audio_text_loss_ratio",
            "audio_term_loss_ratio",
            "hard_neg_weight",
            "no_term_weight",
            "phoneme_loss_weight",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}, not {self.loss!r}")
        if self.window_reduction not in WINDOW_REDUCTIONS:
            raise ValueError(f"window_reduction must be one of {WINDOW_REDUCTIONS}, not {self.window_reduction!r}")
        for name in ("temperature", "window_temperature"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if self.hard_neg_k < 1:
            raise ValueError(f"hard_neg_k must be at least 1, not {self.hard_neg_k}; enable_hard_neg turns them off")
        if self.hard_neg_refresh_steps < 1:
            raise ValueError(f"hard_neg_refresh_steps must be at least 1, not {self.hard_neg_refresh_steps}")
        for name in ("hard_neg_max_positive_ratio", "hard_neg_phonetic_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        super().check_objective()
        if self.max_batch_seconds is not None and self.contrastive_batch_size is not None:
            raise ValueError("max_batch_seconds and contrastive_batch_size both set the size of a batch; give one")

    def objective(self) -> Objective:
        """What these settings minimise."""
        return Objective(
            loss=self.loss,
            audio_text_loss_ratio=self.audio_text_loss_ratio,
            audio_term_loss_ratio=self.audio_term_loss_ratio,
            hard_neg_weight=self.hard_neg_weight if self.enable_hard_neg else 0.0,
            no_term_weight=self.no_term_weight,
            phoneme_loss_weight=self.phoneme_loss_weight,
            no_term_margin=self.no_term_margin,
            window_temperature=self.window_temperature if self.window_reduction == "logsumexp" else None,
        )


TERM_RETRIEVAL = (ModelArguments, DataArguments, TermRetrievalArguments)
