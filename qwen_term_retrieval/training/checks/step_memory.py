"""What a step of `TermRetrievalTrainer` needs: cuts of its largest batch are run, on silence for its longest clip.

Towers and heads count for the batch or for a chunk of GradCache, the loss for the whole batch and all ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import send_to_device

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.augmentation.visits import Augmentation
from qwen_term_retrieval.distributed import world_size
from qwen_term_retrieval.losses.score_blocks import BLOCK_ELEMENTS
from qwen_term_retrieval.runs.memory import GB, StepMemory, model_memory, peak_memory, require_memory
from qwen_term_retrieval.runs.sampling import Visit
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.gradcache import split_inputs

_CLIPS_COUNTED, _CLIPS_MEASURED, _TEXTS_MEASURED = 512, 4, 16


def check_memory(trainer: Any) -> StepMemory:
    """Say what a step of this rank needs, or refuse the run on every rank; see `require_memory`."""

    def measure() -> StepMemory:
        steps = (_measure(trainer, clips)() for clips in _largest_batches(trainer))
        return max(steps, key=lambda step: step.total)

    advice = "Use shorter clips, smaller towers, or activation_checkpointing"
    return require_memory(measure, trainer.args.device, few=f"{_CLIPS_MEASURED} clips", advice=advice)


def _largest_batches(trainer: Any) -> list[list[int]]:
    """Clips, the longest first, of the global batch with the longest, and of the one with most if that is another."""
    durations = trainer.train_clips.durations
    batches = trainer._get_train_sampler(trainer.train_clips).batches()
    sizes = [(durations[batch].max(), len(batch)) for batch in batches]
    longest, most = sizes.index(max(sizes)), max(range(len(sizes)), key=lambda n: sizes[n][::-1])
    chosen = [batches[n] for n in dict.fromkeys((longest, most))]
    return [batch[(-durations[batch]).argsort()].tolist() for batch in chosen]


def _measure(trainer: Any, clips: list[int]) -> Callable[..., StepMemory]:
    """Measure cuts of a global batch: clips of a rank and of a chunk, by default the run's -> what a step needs."""
    args, model, own = trainer.args, trainer.retrieval_model, len(clips) // world_size()
    inputs = _silent_inputs(trainer, clips[: max(_CLIPS_MEASURED, min(_CLIPS_COUNTED, own))])
    audio = inputs["pcm_BS" if "pcm_BS" in inputs else "frames_BTH"]
    texts, spans = len(next(iter(inputs["text_inputs"].values()))), len(inputs["clip_index_P"])
    size = max(_CLIPS_MEASURED // 2, round(_TEXTS_MEASURED / 2 * len(audio) / texts))
    if args.gradcache_chunk:  # no more at a time than the run itself
        size = min(size, max(_CLIPS_MEASURED, args.gradcache_chunk) // 2)

    def outputs_of(num_clips: int) -> torch.Tensor:
        cuts = split_inputs(inputs, num_clips)
        with trainer.accelerator.autocast():
            outputs = model(**send_to_device(cuts[(len(cuts) - 1) // 2].inputs, args.device))
        heard = 0.0 if outputs.phoneme_nll_B is None else outputs.phoneme_nll_B.sum()
        return outputs.audio_PD.sum() + outputs.text_ND.sum() + heard

    peak_of = peak_memory(model, outputs_of, max(1, min(size, len(audio) // 2)))

    def needs(num_clips: int = own, chunk: int | None = args.gradcache_chunk) -> StepMemory:
        at_once, share = min(num_clips, chunk or num_clips), num_clips / len(audio)
        # In the machine's memory lie the batches of a whole step, and those that workers have built ahead.
        batches = args.gradient_accumulation_steps + args.steps_built_ahead if args.device.type == "cpu" else 1
        parts = model_memory(model, args.optim) | {
            "batches of audio": audio[0].nbytes * num_clips * batches,
            "audio tower, text tower and heads": peak_of(at_once),
            "loss and working space": _loss_memory(share * spans, share * texts, model.config.embedding_dim),
        }
        in_chunks = f" in chunks of {chunk}" if at_once < num_clips else ""
        return StepMemory(f"{num_clips} clips", in_chunks, parts, lambda free: _remedies(trainer, clips, needs, free))

    return needs


def _silent_inputs(trainer: Any, clips: list[int]) -> dict[str, Any]:
    """The model's inputs for these clips: silence as long as the longest can be, and any terms as hard negatives."""
    args, training, tower = trainer.args, trainer.train_clips, trainer.retrieval_model.audio_tower
    seconds = min(_at_most(training.durations[clips[0]], training.augmentation), tower.max_seconds)
    samples = max(tower.min_samples, round(seconds * SAMPLING_RATE))

    def silence(rows: list[Any]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        num_samples_B = torch.full((len(rows),), samples)
        num_samples_B[1::2] = max(tower.min_samples, samples * 19 // 20)  # all of one length need no attention mask
        num_frames_B = tower.num_frames(num_samples_B)
        if training.frame_cache is None:
            pcm_BS = torch.zeros(1, samples, dtype=torch.int16).expand(len(rows), -1)
            return {"pcm_BS": pcm_BS, "num_samples_B": num_samples_B}, num_frames_B
        cached, _ = training.frame_cache.get([0])
        shape = (*cached.shape[1:-2], int(num_frames_B[0]), cached.shape[-1])
        frames_BTH = cached.new_zeros(1, *shape).expand(len(rows), *shape)
        return {"frames_BTH": frames_BTH, "num_frames_B": num_frames_B}, num_frames_B

    def some_terms(clip: int, _step: int) -> list[int]:
        return [(clip * args.hard_neg_k + place) % len(trainer.glossary) for place in range(args.hard_neg_k)]

    negatives_of = some_terms if trainer.hard_negatives_of is not None else None
    collator = replace(trainer.data_collator, load_audio=silence, hard_negatives_of=negatives_of)
    return collator(training.__getitems__([Visit(clip, draw) for draw, clip in enumerate(clips)]))["model_inputs"]


def _at_most(seconds: float, augmentation: Augmentation | None) -> float:
    """How long augmentation can make a clip: played slowly, silent before and behind."""
    if augmentation is None:
        return seconds
    config = augmentation.planner.config
    slowest = min(1.0, config.speed[0]) if config.speed_prob else 1.0
    return seconds / slowest + (2 * config.silence_seconds[1] if config.silence_prob else 0.0)


def _loss_memory(spans: float, texts: float, dim: int) -> float:
    """Bytes of embeddings and their gradients, candidates of all ranks, and a block of scores with its vectors."""
    candidates = texts * world_size()
    rows = min(spans, BLOCK_ELEMENTS / max(candidates, dim))
    copies = 2 * texts + (4 * candidates if world_size() > 1 else 0)
    return 4 * (dim * (2 * spans + 2 * texts + copies) + rows * (2 * candidates + 3 * dim))


def _remedies(trainer: Any, clips: list[int], needs: Callable[..., StepMemory], free: float) -> Iterator[str]:
    """Settings that would fit, the gentlest first, with what they would need."""
    args, own = trainer.args, len(clips) // world_size()
    if not args.activation_checkpointing:
        trainer.retrieval_model.activation_checkpointing_enable()
        try:
            need = _measure(trainer, clips)().to_come
        finally:
            trainer.retrieval_model.activation_checkpointing_disable()
        if need < needs().to_come:  # frozen or cached towers keep nothing to compute again
            yield f"activation_checkpointing would need {need / GB:.2f} GB{'' if need <= free else ', too much still'}"
    sizes = [2**power for power in range(20, -1, -1) if 2**power < min(own, args.gradcache_chunk or own)]
    chunks = ((f"gradcache_chunk {size}", needs(chunk=size)) for size in sizes)
    batches = ((_batch_setting(args, size, size / own), needs(size)) for size in sizes)
    for settings in (chunks, batches):
        fitting = (f"{name} would need {step.to_come / GB:.2f} GB" for name, step in settings if step.to_come <= free)
        yield from itertools.islice(fitting, 1)


def _batch_setting(args: TermRetrievalArguments, num_clips: int, share: float) -> str:
    """What to set for so many clips a rank, a share of those there are, where the run sets its batches."""
    if args.max_batch_seconds is not None:
        return f"max_batch_seconds {args.max_batch_seconds * share:.4g}"
    if args.contrastive_batch_size is not None:
        return f"contrastive_batch_size {num_clips * args.world_size}"
    return f"per_device_train_batch_size {num_clips}"
