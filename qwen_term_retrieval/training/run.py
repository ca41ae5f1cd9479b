"""One training run from settings to a model that searches: what `scripts/train.py` and the Modal app call.

Load the rows, build the model, train, keep the best checkpoint, choose its threshold on the evaluation split, judge it
on the test split, write `<output_dir>/{train,eval,test,all}_results.json` as the Hugging Face examples do, save the
model with its card, search one test recording with it, so that the run ends with something heard, and push it.
"""

from __future__ import annotations

import logging
from dataclasses import asdict

import datasets
import torch
from transformers.trainer_utils import IntervalStrategy

from qwen_term_retrieval.errors import VerifierError
from qwen_term_retrieval.evaluation.evaluator import RetrievalEvaluator
from qwen_term_retrieval.evaluation.report import recall_rows, recall_table, threshold_line, threshold_rows
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.packs.holding_out import hold_out
from qwen_term_retrieval.packs.loading import load_rows, split_of
from qwen_term_retrieval.retrieval.calibration import CalibrationError, calibrate
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.retrieval.verifier_fitting import calibrate_verifier
from qwen_term_retrieval.runs.checkpoints.resuming import check_same_data
from qwen_term_retrieval.runs.starting import claim_output_dir, configure_logging, heading, show_loss_behind_the_bar
from qwen_term_retrieval.runs.unsupported import refuse_launch
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.trainer_callbacks import RecallReporterCallback, ThroughputCallback
from qwen_term_retrieval.training.arguments import DataArguments, ModelArguments, TermRetrievalArguments
from qwen_term_retrieval.training.data.clips import data_identity, spoken_terms, training_glossary
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer

logger = logging.getLogger(__name__)

_OF_A_CHECKPOINT = ("audio_tower", "audio_layers", "text_tower", "text_pooling", "pooling", "embedding_dim")


def run_training(
    model_args: ModelArguments, data_args: DataArguments, args: TermRetrievalArguments
) -> dict[str, float]:
    """Train, evaluate, save and show. Returns the metrics of every stage, as in `all_results.json`.

    Raises:
        FileExistsError: `output_dir` holds an earlier run and neither `resume` nor `overwrite` was given.
        ValueError: a split or a column that the dataset does not have; a clip the tower cannot take; a checkpoint of
            another model, or of other data.
        RuntimeError: not one process a GPU, or fewer processes than were asked for.
        HubPushError: the Hub takes no repository, before anything else; or the model, once it is on disk.
    """
    configure_logging(args)
    refuse_launch(args)
    args.record(model_args, data_args)
    if not data_args.eval_split and args.eval_strategy != IntervalStrategy.NO:
        raise ValueError("without an eval_split there is nothing to evaluate on: set eval_strategy to 'no' as well")
    checkpoint = claim_output_dir(args)
    heading("rows", f"{data_args.dataset}")
    rows = checked_rows(data_args)
    glossary = Glossary.from_file(data_args.glossary) if data_args.glossary else None
    heading("model", f"{model_args.model or f'{model_args.audio_tower} + {model_args.text_tower}'}")
    model = build_model(model_args, args)
    if checkpoint is not None:
        check_same_model(model.config, checkpoint)
        train_rows = rows[data_args.train_split]
        check_same_data(checkpoint, data_identity(train_rows, training_glossary(train_rows, glossary)))
    trainer = TermRetrievalTrainer(
        model,
        args,
        train_dataset=rows[data_args.train_split],
        eval_dataset=rows[data_args.eval_split] if data_args.eval_split else None,
        glossary=glossary,
        callbacks=[RecallReporterCallback(), ThroughputCallback()],
    )
    show_loss_behind_the_bar(trainer)
    trainer.card_data = f"`{data_args.dataset}`, split `{data_args.train_split}`: {len(trainer.glossary):,} terms."
    if model_args.model:
        trainer.card_data += f" The training went on from the model `{model_args.model}`."

    heading("train", f"{len(rows[data_args.train_split])} clips, {len(trainer.glossary)} terms; into {args.output_dir}")
    # A callback of transformers 5.23 takes `total_flos` out of the metrics.
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics | {"total_flos": trainer.state.total_flos}
    if metrics["train_steps_per_second"]:  # else the run was resumed at its end, and told its metrics before
        trainer.save_metrics("train", metrics)
    trainer.save_state()
    if data_args.eval_split:
        heading("evaluate", f"the best checkpoint on {data_args.eval_split!r}")
        eval_metrics = trainer.evaluate()
        if trainer.is_world_process_zero():
            eval_metrics |= choose_threshold(trainer, rows[data_args.eval_split], data_args.eval_split)
        trainer.save_metrics("eval", eval_metrics)
        metrics |= eval_metrics
    if data_args.test_split and trainer.is_world_process_zero():
        metrics |= judge(trainer, rows, data_args)
    save(trainer, data_args, metrics)
    if data_args.test_split and trainer.is_world_process_zero():
        show_search(trainer, rows[data_args.test_split])
    if args.push_to_hub:
        heading("push", f"to {trainer.hub_model_id}")
        trainer.push_to_hub()
    return metrics


def choose_threshold(trainer: TermRetrievalTrainer, rows: datasets.Dataset, split: str) -> dict[str, float]:
    """Give the model the threshold of the best F1 on rows that it was not trained on, and say what it does there."""
    retriever = TermRetriever(trainer.retrieval_model)
    retriever.index(trainer.glossary.joined_by(spoken_terms(rows)))
    try:
        chosen = calibrate(retriever, rows)
        if trainer.retrieval_model.phoneme_head is not None:
            chosen = calibrate_verifier(retriever, rows)
    except (CalibrationError, VerifierError) as error:  # a model that has learnt nothing is saved all the same
        logger.warning("the model gets no threshold: %s", error)
        return {}
    heading("threshold", f"{chosen.threshold:.3f}, chosen on {split!r} (F1 {chosen.f1:.3f})")
    return {f"eval_{name}": value for name, value in asdict(chosen).items()}


def judge(trainer: TermRetrievalTrainer, rows: datasets.DatasetDict, data_args: DataArguments) -> dict[str, float]:
    """What a user of the model will see: search the test split as a user would."""
    heading("test", f"{data_args.test_split!r}, never looked at until now")
    test_rows = rows[data_args.test_split]
    evaluator = RetrievalEvaluator(
        test_rows,
        trainer.glossary.joined_by(spoken_terms(test_rows)),
        seen_terms=spoken_terms(rows[data_args.train_split]),
    )
    metrics = {f"test_{name}": value for name, value in evaluator(TermRetriever(trainer.retrieval_model)).items()}
    trainer.save_metrics("test", metrics)
    print(recall_table(metrics, "test"))
    print(threshold_line(metrics, "test"))
    return metrics


def save(trainer: TermRetrievalTrainer, data_args: DataArguments, metrics: dict[str, float]) -> None:
    """The model with its card, in `output_dir`."""
    splits = [(prefix, split) for prefix in ("eval", "test") if (split := getattr(data_args, f"{prefix}_split"))]
    trainer.card_recall = [row for prefix, split in splits for row in recall_rows(metrics, prefix, split)]
    trainer.card_thresholds = [row for prefix, split in splits for row in threshold_rows(metrics, prefix, split)]
    trainer.save_model(_internal_call=True)  # without it, `save_model` pushes


def check_same_model(config: TermRetrievalConfig, checkpoint: str) -> None:
    """Refuse to go on from a checkpoint whose weights are of another model than the settings make."""
    saved = TermRetrievalConfig.from_pretrained(checkpoint)
    shapes = ("audio_layers", "embedding_dim", "pooling", "segments", "lora", "text_lora")
    # By its digest: the tower's folder may have another name on another machine.
    for name in ("audio_tower_sha256", "text_tower", *shapes):
        before, now = getattr(saved, name), getattr(config, name)
        if before != now:
            raise ValueError(
                f"{checkpoint} was trained with {name} {before!r}, not {now!r}: resume with its own settings, or "
                "start anew with --overwrite or another --output_dir"
            )


def checked_rows(data_args: DataArguments) -> datasets.DatasetDict:
    """The splits of the dataset, checked before anything costly starts."""
    splits = load_rows(data_args.dataset)
    hold_out_missing(splits, data_args)
    for name in ("train_split", "eval_split", "test_split"):
        split = getattr(data_args, name)
        if split:
            rows = split_of(splits, split, data_args.dataset, f"--{name}")
            check_durations(rows, f"{data_args.dataset}, split {split!r}", data_args.max_clip_seconds)
    return splits


def hold_out_missing(splits: datasets.DatasetDict, data_args: DataArguments) -> None:
    """Make the split that picks the best checkpoint where the data has none, and say so; no test split is made.

    Only of the default names: a split that somebody named must be there.
    """
    train, evaluated = data_args.train_split, data_args.eval_split
    if evaluated == DataArguments.eval_split and evaluated not in splits and train in splits:
        where = f"{data_args.dataset}, split {train!r}"
        splits[train], splits[evaluated], how = hold_out(splits[train], data_args.eval_fraction, where)
        heading("held out", f"{data_args.dataset} has no split {evaluated!r}: {how}")
    if data_args.test_split == DataArguments.test_split and data_args.test_split not in splits:
        heading("no test", f"{data_args.dataset} has no split {data_args.test_split!r}: nothing is judged at the end")
        data_args.test_split = None


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
    """A new model on pretrained towers, or the checkpoint to go on from; with LoRA where a rank is given.

    Of a checkpoint's towers and heads nothing can be changed; what the settings say otherwise is warned of.

    Raises:
        ValueError: the checkpoint has LoRA of another rank than is given.
    """
    torch.manual_seed(args.seed)
    if model_args.model:
        model = TermRetrievalModel.from_pretrained(model_args.model, attn_implementation=model_args.attn_implementation)
        model.config.threshold = model.config.threshold_terms = model.config.verifier = (
            None  # of the weights as they were
        )
        warn_of_ignored(model_args, model.config)
    else:
        model = TermRetrievalModel(model_config(model_args))
    for setting, tower, found in (
        ("lora_r", "audio", model.config.lora),
        ("text_lora_r", "text", model.config.text_lora),
    ):
        r = getattr(model_args, setting)
        if r and found is None:
            model.add_lora(r, model_args.lora_alpha, model_args.lora_dropout, tower=tower)
        elif r and found["r"] != r:
            raise ValueError(f"{setting} is {r}, but {model_args.model} has LoRA of rank {found['r']}: give that, or 0")
    if model_args.train_audio_tower:
        if model.config.lora is not None:
            raise ValueError(
                f"train_audio_tower: {model_args.model} has LoRA of rank {model.config.lora['r']} in its audio tower; "
                "leave train_audio_tower out, or give a model whose adapters are merged (`merge_lora`)"
            )
        model.train_audio_tower()
    return model


def warn_of_ignored(model_args: ModelArguments, config: TermRetrievalConfig) -> None:
    """Name the settings that were given, or are not their defaults, and that the checkpoint has otherwise."""
    windows, text_tower = config.windows or {}, config.text_tower_config or {}
    kept = {name: getattr(config, name) for name in _OF_A_CHECKPOINT}
    kept |= {"window_sizes": windows.get("sizes"), "window_stride": windows.get("stride")}
    kept["text_tower_config"] = {name: text_tower.get(name) for name in model_args.text_tower_config or ()} or None
    for setting, lora in (("lora_r", config.lora), ("text_lora_r", config.text_lora)):
        if lora is not None:
            kept |= {setting: lora["r"], "lora_alpha": lora["lora_alpha"], "lora_dropout": lora["lora_dropout"]}
    ignored = [
        f"{name} {value!r} (not {asked!r})"
        for name, value in kept.items()
        if (asked := getattr(model_args, name)) != value
        and (name in model_args.given or asked != getattr(ModelArguments, name))
    ]
    if ignored:
        logger.warning("%s keeps its own %s", model_args.model, ", ".join(ignored))


def model_config(model_args: ModelArguments) -> TermRetrievalConfig:
    windows = None
    if model_args.window_sizes:
        windows = {"sizes": model_args.window_sizes, "stride": model_args.window_stride}
    return TermRetrievalConfig(
        audio_tower=model_args.audio_tower,
        audio_layers=model_args.audio_layers,
        text_tower=model_args.text_tower,
        text_tower_config=model_args.text_tower_config,  # type: ignore[arg-type]  # a mapping from `__post_init__` on
        text_pooling=model_args.text_pooling,
        pooling=model_args.pooling,
        embedding_dim=model_args.embedding_dim,
        windows=windows,
        # Every config of transformers takes it, and none declares it (5.23).
        attn_implementation=model_args.attn_implementation,  # type: ignore[call-arg]
    )


def show_search(trainer: TermRetrievalTrainer, rows: datasets.Dataset) -> None:
    """Search one recording of the test split with the trained model: the last thing a run prints."""
    sentences = rows.filter(lambda text, terms: bool(terms) and text not in terms, input_columns=["text", "terms"])
    row = (sentences if len(sentences) else rows)[0]
    retriever = TermRetriever(trainer.retrieval_model)
    retriever.index(spoken_terms(rows))
    heading("search", f"{row['key']}, which says {row['text']!r}")
    for match in retriever.nearest_batch([row["audio"]], top_k=3)[0]:
        heard = "heard" if retriever.threshold is not None and match.reaches(retriever.threshold) else "     "
        print(f"{heard}  {match.term:<32} {match.confidence:.3f}  {match.start:.2f}-{match.end:.2f} s")
