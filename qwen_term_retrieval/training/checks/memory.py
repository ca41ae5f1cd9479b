"""A run that would not fit into memory says so before its first step, and what would fit.

`check_memory` measures the parts of a step on the run's longest clips (`step_memory.py`), compares what the largest
batch will need with what is free, and refuses where it is too much: on every rank, if it is too much on any.

On a CPU that is the memory of the machine or of the container, shared by the ranks on it; on a GPU what the device has
left. Evaluation and mining embed without a graph and are not counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
import torch.distributed as dist

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.augmentation.visits import Augmentation
from qwen_term_retrieval.distributed import world_size
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.models.text_towers.tower import pretrained_text_encoder
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.checks.step_memory import (
    GB,
    BatchShape,
    MemoryEstimate,
    PartMemory,
    StepMemory,
    measure_part,
    undisturbed,
)
from qwen_term_retrieval.training.data.clips import TrainingClips
from qwen_term_retrieval.training.data.sampling import DurationBatchSampler, Visit

if TYPE_CHECKING:
    from qwen_term_retrieval.training.trainer import TermRetrievalTrainer

logger = logging.getLogger(__name__)

# Of the free memory. Allocators leave gaps: PyTorch's on a GPU small ones; on a CPU, glibc's heap was seen to hold
# twice the tensors of a step, and more with checkpointing.
_WARNED_ABOVE = {"cuda": 0.85, "cpu": 0.5}
_CLIPS_COUNTED = 512
_CLIPS_MEASURED = 4
# A phoneme encoder works in groups of 128; a pretrained encoder pads all texts to the longest and costs more.
_TEXTS_MEASURED, _LONG_TEXTS_MEASURED = 256, 8


class NotEnoughMemoryError(RuntimeError):
    """A step of the run needs more memory than there is."""


def check_memory(trainer: TermRetrievalTrainer) -> MemoryEstimate:
    """Estimate the peak memory of a step on this rank, say it in one line, and refuse a run that it does not fit.

    Raises:
        NotEnoughMemoryError: on every rank. Names the parts, and settings that would fit with what they would need.
    """
    free = free_memory(trainer.args.device)
    memory, clips, chunk = None, 0, trainer.args.gradcache_chunk
    try:
        memory, clips = _largest_step(trainer)
        estimate = memory.estimate(clips, chunk)
        missing = 0.0 if free is None else estimate.to_come - free
    except torch.OutOfMemoryError as error:
        estimate, missing = None, float("inf")
        logger.error("memory: not even %d clips fit: %s", _CLIPS_MEASURED, str(error).splitlines()[0])
    too_much = _largest_of_ranks(missing, trainer.args.device) > 0
    if too_much or estimate is None:
        raise NotEnoughMemoryError(_refusal(trainer, memory, estimate, clips, free))
    _tell(estimate, clips, chunk, free, trainer.args.device)
    return estimate


def free_memory(device: torch.device) -> float | None:
    """Bytes that this process may still take on the device; None where the device does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    return min(psutil.virtual_memory().available, _left_in_cgroup()) / ranks_here


def _left_in_cgroup(root: Path = Path("/sys/fs/cgroup")) -> float:
    """What a container's limit leaves; file pages that the kernel can drop do not count as used."""
    for limit, usage, statistics in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such file, or the word "max"
            left = int((root / limit).read_text()) - int((root / usage).read_text())
            lines = dict(line.split() for line in (root / statistics).read_text().splitlines())
            return left + int(lines.get("total_inactive_file", lines.get("inactive_file", 0)))
    return float("inf")


def _largest_of_ranks(value: float, device: torch.device) -> float:
    if world_size() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float32, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return float(shared)


# ---- measuring ----------------------------------------------------------------------------------------------------


def _largest_step(trainer: TermRetrievalTrainer) -> tuple[StepMemory, int]:
    """The step that needs most, and its clips on this rank: the longest clips, or with a budget of seconds the most."""
    found = []
    for clips in _largest_batches(trainer):
        memory = measure_step(trainer, clips)
        found.append((memory.estimate(len(clips), trainer.args.gradcache_chunk).total, memory, len(clips)))
    _, memory, num_clips = max(found, key=lambda step: step[0])
    return memory, num_clips


def _largest_batches(trainer: TermRetrievalTrainer) -> list[list[int]]:
    """Clips of a rank, the longest first: of the batch with the longest clips, and of the one with the most."""
    args, durations = trainer.args, _clips_of(trainer).durations
    if args.max_batch_seconds is None:
        return [durations.argsort()[::-1][: args.train_batch_size].tolist()]
    ranks = args.world_size
    batches = DurationBatchSampler(
        durations, args.max_batch_seconds, args.seed, num_ranks=ranks, divisible_by=math.lcm(8, ranks)
    ).batches()
    chosen = (max(batches, key=lambda batch: durations[batch].max()), max(batches, key=len))
    return [sorted(batch.tolist(), key=lambda clip: -durations[clip])[: len(batch) // ranks] for batch in chosen]


def _clips_of(trainer: TermRetrievalTrainer) -> TrainingClips:
    if trainer.train_clips is None:
        raise ValueError("there is no train_dataset whose steps could be measured")
    return trainer.train_clips


def measure_step(trainer: TermRetrievalTrainer, clips: Sequence[int]) -> StepMemory:
    """Measure the parts of a step over these training clips, the longest first, with few of them."""
    model, training_clips, args = trainer.retrieval_model, _clips_of(trainer), trainer.args
    longest = _at_most(float(training_clips.durations[clips[0]]), training_clips.augmentation)
    samples = max(model.audio_tower.min_samples, round(min(longest, model.audio_tower.max_seconds) * SAMPLING_RATE))
    batch = _counted_batch(trainer, clips[:_CLIPS_COUNTED])
    counted = min(len(clips), _CLIPS_COUNTED)
    probe = _Probe(model, samples, training_clips.frame_cache, trainer.accelerator.autocast, args.device)
    with undisturbed(model):
        audio_tower = probe.audio_tower()
        heads = probe.heads(-(-len(batch["model_inputs"]["clip_index_P"]) // counted))
        text_tower = probe.text_tower(batch["model_inputs"]["text_inputs"])
    return StepMemory(
        model=model,
        shape=_shape_of(batch, counted, probe.input_bytes()),
        audio_tower=audio_tower,
        heads=heads,
        text_tower=text_tower,
        embedding_dim=model.config.embedding_dim,
        optimizer=str(getattr(args.optim, "value", args.optim)),
        num_ranks=world_size(),
        # In the machine's memory lie the batches of a whole step, and those that workers have built ahead.
        batches_ready=args.gradient_accumulation_steps + args.steps_built_ahead if args.device.type == "cpu" else 1,
    )


def _at_most(seconds: float, augmentation: Augmentation | None) -> float:
    """How long augmentation can make a clip: played slowly, silent before and behind."""
    if augmentation is None:
        return seconds
    config = augmentation.planner.config
    slowest = min(1.0, config.speed[0]) if config.speed_prob else 1.0
    return seconds / slowest + (2 * config.silence_seconds[1] if config.silence_prob else 0.0)


def _counted_batch(trainer: TermRetrievalTrainer, clips: Sequence[int]) -> dict[str, Any]:
    """The batch of these clips without its audio, its texts as they are, its hard negatives drawn at random."""
    plain: Any = trainer.data_collator
    args, model = trainer.args, trainer.retrieval_model

    def no_audio(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        samples = torch.tensor([round(row["duration"] * SAMPLING_RATE) for row in rows])
        return {}, model.audio_tower.num_frames(samples).clamp(min=1)

    def some_terms(clip: int, _step: int) -> list[int]:
        return [(clip * args.hard_neg_k + place) % len(trainer.glossary) for place in range(args.hard_neg_k)]

    collator = dataclasses.replace(
        plain,
        load_audio=no_audio,
        tokenize=lambda texts, *_languages: texts,
        hard_negatives_of=some_terms if trainer.hard_negatives_of is not None else None,
    )
    return collator(_clips_of(trainer).__getitems__([Visit(int(clip), draw=0) for clip in clips]))


def _shape_of(batch: dict[str, Any], num_clips: int, input_bytes: float) -> BatchShape:
    queries = [
        batch[name]["windows_QW"] for name in ("text_queries", "term_queries", "no_term_queries") if name in batch
    ]
    candidates = [len(batch[name]["rows_N"]) for name in ("text_candidates", "term_candidates")]
    hard = len(batch["hard_negatives"]["rows_N"]) if "hard_negatives" in batch else 0
    return BatchShape(
        input_bytes=input_bytes,
        spans=len(batch["model_inputs"]["clip_index_P"]) / num_clips,
        queries=sum(map(len, queries)) / num_clips,
        texts=len(batch["model_inputs"]["text_inputs"]) / num_clips,
        candidates=(sum(candidates) + hard) / num_clips,
        gathered=sum(candidates) / num_clips,
        windows=max(windows.shape[1] for windows in queries),
    )


@dataclasses.dataclass
class _Probe:
    """Runs the parts of a model on silence, and on texts of the run."""

    model: TermRetrievalModel
    samples: int
    cache: Any
    autocast: Callable[[], contextlib.AbstractContextManager[Any]]
    device: torch.device

    @property
    def num_frames(self) -> int:
        return int(self.model.audio_tower.num_frames(torch.tensor([self.samples])))

    def input_bytes(self) -> float:
        """Of one clip: its samples, or its cached frames."""
        if self.cache is None:
            return 2.0 * self.samples
        features, _ = self.cache.get([0])
        return features[0, ..., 0, :].nbytes * self.num_frames

    def audio_tower(self) -> PartMemory | None:
        if self.cache is not None:
            return None
        return self._measure(self._pcm, lambda **pcm: self.model.audio_frames(**pcm)[0])

    def heads(self, spans: int) -> PartMemory:
        trained = any(values.requires_grad for values in self.model.audio_tower.parameters())
        if self.cache is not None:
            example = self.cache.get([0])[0]
        else:
            with torch.no_grad(), self.autocast():
                example = self.model.audio_frames(**self._pcm(1))[0]

        def frames(size: int) -> dict[str, torch.Tensor]:
            shape = (size, *example.shape[1:-2], self.num_frames, example.shape[-1])
            features = torch.zeros(shape, dtype=example.dtype, device=self.device, requires_grad=trained)
            lengths = torch.full((size,), self.num_frames, device=self.device)
            clips = torch.arange(size, device=self.device).repeat_interleave(spans)
            ends = torch.full((len(clips),), float(self.num_frames), device=self.device)
            return {
                "frames_BTH": features,
                "num_frames_B": lengths,
                "clip_index_P": clips,
                "start_P": torch.zeros_like(ends),
                "end_P": ends,
            }

        return self._measure(frames, self.model.pool_spans)

    def text_tower(self, texts: Sequence[str]) -> PartMemory:
        by_length = sorted(texts, key=len)
        if pretrained_text_encoder(self.model.text_tower) is None:
            at_most = min(len(texts), _TEXTS_MEASURED)
            chosen = [by_length[place * len(texts) // at_most] for place in range(at_most)]
        else:
            chosen = by_length[-_LONG_TEXTS_MEASURED:]
        chosen = chosen * (2 if len(chosen) == 1 else 1)

        def tokens(size: int) -> dict[str, torch.Tensor]:
            inputs = self.model.tokenize(chosen[:: len(chosen) // size][:size])
            return {name: values.to(self.device) for name, values in inputs.items()}

        sizes = (len(chosen) // 2, len(chosen))
        return measure_part(tokens, self.model.embed_texts, sizes, self.autocast)

    def _pcm(self, size: int) -> dict[str, torch.Tensor]:
        """The last clip is shorter than the others: where all are of one length, attention has no mask."""
        samples = torch.full((size,), self.samples)
        samples[-1] = max(self.model.audio_tower.min_samples, self.samples * 9 // 10)
        pcm = torch.zeros((size, self.samples), dtype=torch.int16, device=self.device)
        return {"pcm_BS": pcm, "num_samples_B": samples}

    def _measure(self, inputs: Callable[[int], dict[str, Any]], forward: Callable[..., torch.Tensor]) -> PartMemory:
        return measure_part(inputs, forward, (_CLIPS_MEASURED // 2, _CLIPS_MEASURED), self.autocast)


# ---- telling ------------------------------------------------------------------------------------------------------


def _tell(estimate: MemoryEstimate, clips: int, chunk: int | None, free: float | None, device: torch.device) -> None:
    batch = f"{clips} clips" if chunk is None or chunk >= clips else f"{clips} clips in chunks of {chunk}"
    line = f"memory: a step over {batch} needs about {estimate.total / GB:.2f} GB a rank"
    if free is None:
        logger.info(line)
        return
    line += f", {estimate.to_come / GB:.2f} of them still to come; {free / GB:.2f} GB are free"
    if estimate.to_come > _WARNED_ABOVE[device.type] * free:
        logger.warning("%s. That is near the limit:\n%s", line, estimate.table())
    else:
        logger.info(line)


def _refusal(
    trainer: TermRetrievalTrainer,
    memory: StepMemory | None,
    estimate: MemoryEstimate | None,
    clips: int,
    free: float | None,
) -> str:
    if memory is None or estimate is None or free is None:
        return (
            f"this run does not fit: a rank ran out of memory on {_CLIPS_MEASURED} clips. Use shorter clips, "
            "smaller towers, or activation_checkpointing"
        )
    if estimate.to_come <= free:
        return "this run does not fit into the memory of another rank, which says what it needs"
    lines = [
        f"this run does not fit: a step over {clips} clips needs about {estimate.to_come / GB:.2f} GB beside the "
        f"model, and {free / GB:.2f} GB are free on {trainer.args.device}",
        estimate.table(),
        *(f"  {remedy}" for remedy in _remedies(trainer, memory, clips, free)),
        "  check_memory False starts it all the same",
    ]
    return "\n".join(lines)


def _remedies(trainer: TermRetrievalTrainer, memory: StepMemory, clips: int, free: float) -> Iterator[str]:
    """Settings that would fit, the gentlest first, with what they would need."""
    chunk = trainer.args.gradcache_chunk
    smaller = [2**power for power in range(20, -1, -1) if 2**power < min(clips, chunk or clips)]
    if not trainer.args.activation_checkpointing:
        with _checkpointed(trainer.retrieval_model):
            checkpointed = measure_step(trainer, _largest_batches(trainer)[0])
        need = checkpointed.estimate(clips, chunk).to_come
        if need < memory.estimate(clips, chunk).to_come:  # frozen or cached towers keep nothing to compute again
            too_much = "" if need <= free else ", too much still"
            yield f"activation_checkpointing would need {need / GB:.2f} GB{too_much}"
    for setting_of, estimate_of in (
        (lambda size: f"gradcache_chunk {size}", lambda size: memory.estimate(clips, size)),
        (lambda size: _batch_setting(trainer.args, size, size / clips), lambda size: memory.estimate(size, chunk)),
    ):
        fitting = next((size for size in smaller if estimate_of(size).to_come <= free), None)
        if fitting is not None:
            yield f"{setting_of(fitting)} would need {estimate_of(fitting).to_come / GB:.2f} GB"


def _batch_setting(args: TermRetrievalArguments, num_clips: int, share: float) -> str:
    """What to set for so many clips a rank, a share of those there are, where the run sets its batches."""
    if args.max_batch_seconds is not None:
        return f"max_batch_seconds {args.max_batch_seconds * share:.4g}"
    if args.contrastive_batch_size is not None:
        return f"contrastive_batch_size {num_clips * args.world_size}"
    return f"per_device_train_batch_size {num_clips}"


@contextlib.contextmanager
def _checkpointed(model: TermRetrievalModel) -> Iterator[None]:
    model.activation_checkpointing_enable()
    try:
        yield
    finally:
        model.activation_checkpointing_disable()
