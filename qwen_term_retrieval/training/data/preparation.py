"""Rows of a dataset made ready to train or to evaluate on, by all ranks together."""

from __future__ import annotations

from typing import Any

import datasets

from qwen_term_retrieval.augmentation.config import AugmentationConfig
from qwen_term_retrieval.augmentation.visits import Augmentation
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.models.text_towers.tower import pronouncer_of
from qwen_term_retrieval.packs.clip_reader import ClipReader
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.data.audio_source import CachedFrames, PcmFrames, cached_frames
from qwen_term_retrieval.training.data.clips import TrainingClips, annotate_terms, check_languages


def check_rows(rows: Any) -> None:
    """Refuse what is not the rows of one split.

    Raises:
        TypeError: says what it is.
    """
    if not isinstance(rows, datasets.Dataset):
        raise TypeError(f"clips come as a `datasets.Dataset`, the rows of one split, not as a {type(rows).__name__}")


def prepare_clips(
    rows: datasets.Dataset,
    model: TermRetrievalModel,
    glossary: Glossary,
    args: TermRetrievalArguments,
    *,
    augmented: bool = False,
) -> TrainingClips:
    """Match terms, and compute the frames of a tower that is frozen; every rank calls it.

    Args:
        augmented: distort the clips as `args.augmentation` says: those to train on, never those to evaluate on.

    Raises:
        TypeError: not the rows of one split.
        ValueError: a column is missing, a language cannot be pronounced, a clip is unfit.
    """
    check_rows(rows)
    pronouncer = pronouncer_of(model.text_tower)
    if pronouncer is not None:
        check_languages(rows, glossary, pronouncer)
    tower = model.audio_tower
    trained = any(parameter.requires_grad for parameter in tower.parameters())
    augmentation = None
    # One process of a machine fills the cache of `datasets`, the others read it.
    with args.main_process_first(desc="preparing clips"):
        rows = annotate_terms(rows, glossary)
        if augmented and isinstance(args.augmentation, dict):
            config = AugmentationConfig.from_dict(args.augmentation)
            num_copies = None if trained else config.augmented_copies
            augmentation = Augmentation(
                config, rows, max_seconds=tower.max_seconds, num_copies=num_copies, seed=args.seed
            )
    if trained:
        return TrainingClips(rows, None, augmentation)
    model.to(args.device)  # type: ignore[arg-type]  # as the Trainer will, but before frames are computed
    show_progress = not args.disable_tqdm
    cache = cached_frames(model, rows, augmentation, args.frame_cache_dir, show_progress=show_progress)
    return TrainingClips(rows, cache, augmentation)


def audio_source(
    clips: TrainingClips, model: TermRetrievalModel, args: TermRetrievalArguments
) -> PcmFrames | CachedFrames:
    """Where the frames of these clips come from."""
    if clips.frame_cache is not None:
        return CachedFrames(clips.frame_cache, num_clips=len(clips))
    # Distortion computes levels in double precision, which an Apple GPU does not have.
    on_device = args.device.type not in ("cpu", "mps")
    return PcmFrames(ClipReader(clips.rows), model.audio_tower.num_frames, clips.augmentation, on_device)
