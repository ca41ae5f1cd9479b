"""One audio pre-training from settings to a saved model: what `scripts/pretrain_audio.py` and the Modal app call.

Load the rows, build the model, train, keep the best checkpoint, evaluate it, write
`<output_dir>/{train,eval,all}_results.json`, save the model with its card, and push it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import datasets
import torch
import xxhash

from qwen_term_retrieval.packs.loading import load_rows, split_of
from qwen_term_retrieval.pretraining.audio.arguments import (
    AudioDataArguments,
    AudioPretrainingArguments,
    NestModelArguments,
)
from qwen_term_retrieval.pretraining.audio.configuration import NestConfig
from qwen_term_retrieval.pretraining.audio.data import NestClips
from qwen_term_retrieval.pretraining.audio.first_head import NUM_CLIPS, begin_at_frequencies
from qwen_term_retrieval.pretraining.audio.model import NestForPreTraining
from qwen_term_retrieval.pretraining.audio.nemo import read_nemo
from qwen_term_retrieval.pretraining.audio.trainer import PretrainingTrainer
from qwen_term_retrieval.runs.starting import claim_output_dir, configure_logging, heading, show_loss_behind_the_bar
from qwen_term_retrieval.runs.unsupported import refuse_launch
from qwen_term_retrieval.trainer_callbacks import CodebookUsageCallback, ThroughputCallback

logger = logging.getLogger(__name__)

_NEEDED = ("audio",)
_OF_A_CHECKPOINT = (
    "num_books", "num_codes", "normalize_input", "quantizer_seed", "block_frames", "mask_probability", "min_blocks",
    "mask_position",
)  # fmt: skip


def run_audio_pretraining(
    model_args: NestModelArguments, data_args: AudioDataArguments, args: AudioPretrainingArguments
) -> dict[str, float]:
    """Train, evaluate and save. Returns the metrics of every stage, as in `all_results.json`.

    Raises:
        FileExistsError: `output_dir` holds an earlier run and neither `resume` nor `overwrite` was given.
        FileNotFoundError: no such dataset, noise or checkpoint.
        ValueError: settings that do not fit the data; a checkpoint of other data.
        RuntimeError: not one process a GPU, or fewer processes than were asked for.
    """
    configure_logging(args)
    refuse_launch(args)
    args.record(model_args, data_args)
    checkpoint = claim_output_dir(args)
    heading("rows", data_args.dataset)
    train_rows, eval_rows = load_speech(data_args)
    model = build_model(model_args, args.seed)
    config = model.config
    num_parameters = sum(values.numel() for values in model.parameters())
    heading("model", f"{model_args.model or model_args.size}, {num_parameters / 1e6:.1f}M parameters")
    settings, on_device = data_args.clip_settings(), args.device.type != "cpu"
    train_clips = NestClips(train_rows, config, settings, f"{data_args.dataset}, to train on", on_device=on_device)
    eval_clips = NestClips(eval_rows, config, settings, f"{data_args.dataset}, held out", on_device=on_device)
    trainer = PretrainingTrainer(
        model, args, train_clips, eval_clips, callbacks=[CodebookUsageCallback(), ThroughputCallback()]
    )
    if model_args.frequency_head and checkpoint is None:
        if model_args.model is None:
            heading("head", f"begins at the frequencies of the codes in {min(NUM_CLIPS, len(train_clips)):,} clips")
            begin_at_frequencies(model, train_clips)
        else:
            logger.warning("%s keeps its own head: frequency_head is for a new model", model_args.model)
    hours = float(train_clips.durations.sum()) / 3600
    trainer.card_data = f"`{data_args.dataset}`, {hours:.1f} hours of speech"
    show_loss_behind_the_bar(trainer)
    heading("train", f"{len(train_clips)} clips, {hours:.2f} hours; into {args.output_dir}")
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics | {"total_flos": trainer.state.total_flos}
    if metrics["train_steps_per_second"]:  # else the run was resumed at its end, and told its metrics before
        trainer.save_metrics("train", metrics)
    trainer.save_state()
    heading("evaluate", "the best checkpoint" if args.load_best_model_at_end else "the last step")
    eval_metrics = trainer.evaluate()
    trainer.save_metrics("eval", eval_metrics)
    heading("held out", told(eval_metrics))
    trainer.save_model(_internal_call=True)  # without it, `save_model` pushes
    if args.push_to_hub:
        heading("push", f"to {trainer.hub_model_id}")
        trainer.push_to_hub()
    return metrics | eval_metrics


def told(metrics: dict[str, float]) -> str:
    """An evaluation in a line, beside what it takes to beat."""
    loss, entropy = metrics["eval_loss"], metrics["eval_unigram_entropy"]
    return (
        f"loss {loss:.3f} nats, {'below' if loss < entropy else 'not below'} the unigram entropy {entropy:.3f}; "
        f"accuracy {metrics['eval_accuracy']:.3f}, the most frequent code {metrics['eval_top_code_share']:.3f}"
    )


def load_speech(data_args: AudioDataArguments) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Rows to train on and rows held out. Where there is no `eval_split`, a share of the clips by a hash of their keys.

    Raises:
        FileNotFoundError: there is no such dataset.
        ValueError: it has no `train_split`, or no column `audio`.
    """
    splits = load_rows(data_args.dataset, _NEEDED)
    train = split_of(splits, data_args.train_split, data_args.dataset, "--train_split")
    if data_args.eval_split in splits and data_args.eval_split != data_args.train_split:
        return train, splits[data_args.eval_split]
    keys = train["key"][:] if "key" in train.column_names else map(str, range(len(train)))
    held_out = [xxhash.xxh3_64_intdigest(key.encode()) / 2**64 < data_args.eval_share for key in keys]
    if not any(held_out):
        held_out[0] = True
    rows = [[number for number, out in enumerate(held_out) if out is side] for side in (False, True)]
    logger.info("%s has no split %r: %d clips are held out", data_args.dataset, data_args.eval_split, len(rows[1]))
    return train.select(rows[0]), train.select(rows[1])


def build_model(model_args: NestModelArguments, seed: int = 0) -> NestForPreTraining:
    """A new model, or the checkpoint to go on from; of a checkpoint all settings are its own.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: a `.nemo` file of another class; settings that cannot be.
    """
    torch.manual_seed(seed)
    if model_args.model is None:
        return NestForPreTraining(model_config(model_args))
    name = model_args.model
    if name.endswith(".nemo"):
        model = read_nemo(name)
    else:
        if Path(name).is_dir() and not Path(name, "config.json").is_file():
            raise FileNotFoundError(f"model {name} holds no config.json, so it is no checkpoint")
        model = NestForPreTraining.from_pretrained(name)
    ignored = [
        f"{setting} {getattr(model.config, setting)!r} (not {getattr(model_args, setting)!r})"
        for setting in _OF_A_CHECKPOINT
        if setting in model_args.given and getattr(model.config, setting) != getattr(model_args, setting)
    ]
    if ignored:
        logger.warning("%s keeps its own %s", name, ", ".join(ignored))
    return model


def model_config(model_args: NestModelArguments) -> NestConfig:
    """The config of a new model."""
    dropout = dict.fromkeys(("dropout", "activation_dropout", "attention_dropout"), model_args.dropout)
    own = model_args.encoder if isinstance(model_args.encoder, dict) else {}
    encoder = NestConfig.encoder_settings(model_args.size)
    if "hidden_size" in own:
        encoder["intermediate_size"] = 4 * own["hidden_size"]
    settings = {name: getattr(model_args, name) for name in _OF_A_CHECKPOINT}
    return NestConfig(encoder_config={**encoder, **dropout, **own}, **settings)
