"""One text pre-training from settings to a saved model: what `scripts/pretrain_text.py` and the Modal app call.

Open the prepared folder, build the model, train, keep the best checkpoint, evaluate it, on the test split too where
there is one, write `<output_dir>/{train,eval,test,all}_results.json`, save model, tokenizer and card, and push them.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qwen_term_retrieval.pretraining.text.architectures import build_model
from qwen_term_retrieval.pretraining.text.arguments import (
    TextDataArguments,
    TextModelArguments,
    TextPretrainingArguments,
)
from qwen_term_retrieval.pretraining.text.trainer import TextPretrainingTrainer
from qwen_term_retrieval.runs.starting import claim_output_dir, configure_logging, heading, show_loss_behind_the_bar
from qwen_term_retrieval.runs.unsupported import refuse_launch
from qwen_term_retrieval.tokens.mmap_pairs import MmapPairs
from qwen_term_retrieval.trainer_callbacks import TokenThroughputCallback

logger = logging.getLogger(__name__)


def run_text_pretraining(
    model_args: TextModelArguments, data_args: TextDataArguments, args: TextPretrainingArguments
) -> dict[str, float]:
    """Train, evaluate and save. Returns the metrics of every stage, as in `all_results.json`.

    Raises:
        FileExistsError: `output_dir` holds an earlier run and neither `resume` nor `overwrite` was given.
        FileNotFoundError: `dataset` is no prepared folder.
        ValueError: settings that do not fit the data; a checkpoint of other data.
        RuntimeError: not one process a GPU, or fewer processes than were asked for.
    """
    configure_logging(args)
    refuse_launch(args)
    args.record(model_args, data_args)
    train_pairs, eval_pairs, tokenizer = open_prepared(data_args.dataset, args.max_seq_len)
    checkpoint = claim_output_dir(args)
    torch.manual_seed(args.seed)
    model = build_model(model_args, tokenizer)
    num_parameters = sum(values.numel() for values in model.parameters())
    heading("model", f"{model.config.model_type}, {num_parameters / 1e6:.1f}M parameters")
    trainer = TextPretrainingTrainer(
        model, args, train_pairs, eval_pairs, tokenizer=tokenizer, callbacks=[TokenThroughputCallback()]
    )
    trainer.card_data = f"`{data_args.dataset}`: {len(train_pairs):,} pairs"
    show_loss_behind_the_bar(trainer)
    warn_of_long_warmup(trainer)
    heading("train", f"{len(train_pairs)} pairs; into {args.output_dir}")
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics | {"total_flos": trainer.state.total_flos}
    if metrics["train_steps_per_second"]:  # else the run was resumed at its end, and told its metrics before
        trainer.save_metrics("train", metrics)
    trainer.save_state()
    heading("evaluate", "the best checkpoint" if args.load_best_model_at_end else "the last step")
    eval_metrics = trainer.evaluate()
    trainer.save_metrics("eval", eval_metrics)
    heading(
        "validation",
        f"perplexity {eval_metrics['eval_perplexity']:.2f}, {eval_metrics['eval_bits_per_byte']:.3f} bits a byte",
    )
    if (test := Path(data_args.dataset, "tokens", "test")).is_dir():
        heading("test", f"{test}, never looked at until now")
        test_metrics = trainer.evaluate(MmapPairs(test, args.max_seq_len), metric_key_prefix="test")
        trainer.save_metrics("test", test_metrics)
        eval_metrics |= test_metrics
    trainer.save_model(_internal_call=True)  # without it, `save_model` pushes
    if args.push_to_hub:
        heading("push", f"to {trainer.hub_model_id}")
        trainer.push_to_hub()
    return metrics | eval_metrics


def open_prepared(folder: str | Path, max_seq_len: int) -> tuple[MmapPairs, MmapPairs, PreTrainedTokenizerBase]:
    """Training pairs, validation pairs and tokenizer of a folder that `prepare_text` made.

    Raises:
        FileNotFoundError: it is none.
        PackError: a pack is damaged.
    """
    folder = Path(folder)
    missing = [name for name in ("tokens/train", "tokens/valid", "tokenizer") if not (folder / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}: make it with `python scripts/prepare_text.py {folder} "
            "--source FILES`, or without --source from WordNet"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", model_max_length=max_seq_len)
    train_pairs, eval_pairs = (MmapPairs(folder / "tokens" / name, max_seq_len) for name in ("train", "valid"))
    return train_pairs, eval_pairs, tokenizer


def warn_of_long_warmup(trainer: TextPretrainingTrainer) -> None:
    """Say where a warm-up that was meant for millions of pairs is most of a run."""
    args, steps = trainer.args, -(-len(trainer.order) // trainer.args.gradient_accumulation_steps)
    total = args.max_steps if args.max_steps > 0 else int(steps * args.num_train_epochs)
    if args.warmup_steps > total / 2:
        logger.warning(
            "the warm-up takes %g of %d steps: the learning rate hardly gets anywhere; set --warmup_steps to a share, "
            "such as 0.05",
            args.warmup_steps,
            total,
        )
