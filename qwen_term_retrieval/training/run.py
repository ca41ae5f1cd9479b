"""One training run from settings to a model that searches: what `scripts/train.py` and the Modal app call.

Load the rows, build the model, train, keep the best checkpoint, evaluate it on the test split, write
`<output_dir>/{train,eval,test,all}_results.json` as the Hugging Face examples do, save the model with its card, and
search one test recording with it, so that the run ends with something heard.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import datasets
import torch
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as hf_logging

from qwen_term_retrieval.evaluation.report import recall_table
from qwen_term_retrieval.models.retrieval_model import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.training.arguments import DataArguments, ModelArguments, TermRetrievalArguments
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer

logger = logging.getLogger(__name__)


def run_training(
    model_args: ModelArguments, data_args: DataArguments, args: TermRetrievalArguments
) -> dict[str, float]:
    """Train, evaluate, save and show. Returns the metrics of every stage, as in `all_results.json`.

    Raises:
        FileExistsError: `output_dir` holds an earlier run and neither `resume` nor `overwrite` was given.
        ValueError: a split or a column that the dataset does not have; a clip the tower cannot take.
    """
    configure_logging(args)
    with args.main_process_first(desc="preparing the output folder"):
        checkpoint = prepare_output_dir(args)
    step("rows", f"from {data_args.dataset}")
    rows = load_rows(data_args)
    step("model", f"{model_args.model or model_args.audio_tower} + {model_args.text_tower}")
    model = build_model(model_args, args)
    trainer = TermRetrievalTrainer(
        model,
        args,
        train_dataset=rows[data_args.train_split],
        eval_dataset=rows[data_args.eval_split] if data_args.eval_split else None,
        glossary=Glossary.from_file(data_args.glossary) if data_args.glossary else None,
    )

    step("train", f"{len(rows[data_args.train_split])} clips, {len(trainer.glossary)} terms, into {args.output_dir}")
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    for name, split in (("eval", data_args.eval_split), ("test", data_args.test_split)):
        if split:
            step(name, f"the best checkpoint on {split!r}")
            split_metrics = trainer.evaluate(rows[split], metric_key_prefix=name)
            trainer.save_metrics(name, split_metrics)
            metrics |= split_metrics
            if trainer.is_world_process_zero():
                print(recall_table(split_metrics))
    trainer.save_model()
    if args.push_to_hub:
        trainer.push_to_hub()
    if data_args.test_split and trainer.is_world_process_zero():
        show_search(trainer, rows[data_args.test_split])
    return metrics


def configure_logging(args: TermRetrievalArguments) -> None:
    """Rank 0 tells what happens; the other ranks only warn."""
    level = args.get_process_log_level() if args.process_index else logging.INFO
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("qwen_term_retrieval").setLevel(level)
    hf_logging.set_verbosity_warning()
    if args.process_index:
        datasets.disable_progress_bars()


def step(name: str, what: str) -> None:
    logger.info("== %s: %s", name, what)


def prepare_output_dir(args: TermRetrievalArguments) -> str | None:
    """The checkpoint to go on from, if any. An earlier run is never written over unasked."""
    folder = Path(args.output_dir)
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if args.resume:
        return get_last_checkpoint(str(folder))
    if not args.overwrite:
        raise FileExistsError(
            f"{folder} holds an earlier run: --resume goes on with it, --overwrite deletes it, --output_dir leaves it"
        )
    if args.process_index == 0:
        shutil.rmtree(folder)
    return None


def load_rows(data_args: DataArguments) -> datasets.DatasetDict:
    """The splits of the dataset, checked before anything costly starts."""
    import qwen_term_retrieval  # noqa: F401  registers the feature and the builder

    rows = datasets.load_dataset(data_args.dataset)
    for split in (data_args.train_split, data_args.eval_split, data_args.test_split):
        if split and split not in rows:
            raise ValueError(f"{data_args.dataset} has no split {split!r}; it has {sorted(rows)}")
        if split:
            check_durations(rows[split], f"{data_args.dataset}, split {split!r}", data_args.max_clip_seconds)
    return rows


def check_durations(rows: datasets.Dataset, where: str, max_seconds: float) -> None:
    durations = rows.with_format("numpy")["duration"][:]
    too_long = (durations > max_seconds).nonzero()[0]
    if len(too_long):
        first = int(too_long[0])
        raise ValueError(
            f"{where}: {len(too_long)} clips are longer than {max_seconds:g} s, the first is row {first}, "
            f"key {rows[first]['key']!r} ({durations[first]:.1f} s). Cut them into chunks before packing, "
            "or drop them with `rows.filter`."
        )


def build_model(model_args: ModelArguments, args: TermRetrievalArguments) -> TermRetrievalModel:
    """A new model on pretrained towers, or the checkpoint to start from; with LoRA if its rank is not 0."""
    if model_args.model:
        return TermRetrievalModel.from_pretrained(model_args.model)
    windows = None
    if model_args.window_sizes:
        windows = {"sizes": model_args.window_sizes, "stride": model_args.window_stride}
    config = TermRetrievalConfig(
        audio_tower=model_args.audio_tower,
        audio_layers=model_args.audio_layers,
        text_tower=model_args.text_tower,
        embedding_dim=model_args.embedding_dim,
        windows=windows,
        temperature=args.temperature,
    )
    torch.manual_seed(args.seed)
    model = TermRetrievalModel(config)
    if model_args.lora_r:
        model.add_lora(r=model_args.lora_r, alpha=model_args.lora_alpha, dropout=model_args.lora_dropout)
    return model


def show_search(trainer: TermRetrievalTrainer, rows: datasets.Dataset) -> None:
    """Search one recording of the test split with the trained model: the last thing a run prints."""
    long_enough = rows.filter(lambda text, terms: bool(terms) and text not in terms, input_columns=["text", "terms"])
    if not len(long_enough):
        return
    row = long_enough[0]
    retriever = TermRetriever(trainer.retrieval_model)
    retriever.index(sorted({term for terms in rows["terms"] for term in terms}))
    matches = retriever.search(row["audio"], top_k=3)
    step("search", f"{row['key']}: {row['text']!r}")
    for match in matches:
        print(f"   {match.term:<32} {match.score:.3f}   {match.start:5.2f} - {match.end:5.2f} s")
