"""`TermRetrievalTrainer`: the Hugging Face Trainer for audio-text and audio-term contrastive training.

What it adds to `transformers.Trainer`:

- the objective of `losses/objective.py`, over all ranks, and by GradCache over batches larger than memory;
- a guard that takes no step on a loss or gradient that is not finite on any rank;
- batches whose order is a function of (seed, epoch, position), so a resumed run takes the very same steps;
- with a frozen audio tower, its frames computed once and read from disk afterwards;
- Recall@k on seen and unseen terms inside `evaluation_loop`, where early stopping and the best checkpoint see it.

Two ranks with b clips each take the same steps as one rank with 2b.

What any trainer of ours overrides stands in `runs/trainer.py`; which private parts of `transformers` are leaned on in
`transformers_internals.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import BestRun, EvalLoopOutput, number_of_arguments, set_seed

from qwen_term_retrieval.evaluation.report import MAIN_METRIC, recall_rows
from qwen_term_retrieval.losses.objective import Embeddings
from qwen_term_retrieval.models.flops import StepFlops
from qwen_term_retrieval.models.model_card import model_card
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.runs.callbacks import RunCallbacks
from qwen_term_retrieval.runs.checkpoints.best import Checkpoints
from qwen_term_retrieval.runs.checkpoints.publishing import Publisher
from qwen_term_retrieval.runs.loader import EpochLoader
from qwen_term_retrieval.runs.loss_means import LossMeans
from qwen_term_retrieval.runs.sampling import GlobalBatchSampler, batch_sampler
from qwen_term_retrieval.runs.trainer import RunTrainer
from qwen_term_retrieval.runs.unsupported import refuse_launch
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.trainer_callbacks import HardNegativeRefreshCallback
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.checks.own_parts import refuse_own_parts
from qwen_term_retrieval.training.checks.step_memory import check_memory
from qwen_term_retrieval.training.data.audio_source import distort_inputs
from qwen_term_retrieval.training.data.clips import TrainingClips, data_identity, spoken_terms, training_glossary
from qwen_term_retrieval.training.data.collator import TermCollator, note_spoken_clips
from qwen_term_retrieval.training.data.preparation import audio_source, check_rows, prepare_clips
from qwen_term_retrieval.training.data.texts import cache_frozen_texts
from qwen_term_retrieval.training.gradcache import embeddings_of, gradcache_step
from qwen_term_retrieval.training.negatives.mining import HardNegativeMiner
from qwen_term_retrieval.training.negatives.table import HardNegativeTable
from qwen_term_retrieval.training.recall import evaluate_recall
from qwen_term_retrieval.training.search import (
    Trials,
    check_shares_frames,
    default_hp_space,
    kwargs_of_study,
    recall_then_mrr,
)
from qwen_term_retrieval.transformers_internals import check_internals


class TermRetrievalTrainer(RunTrainer):
    """Train a `TermRetrievalModel` on rows of the row schema (`load_dataset` of a pack gives them).

    Args:
        model: with a frozen audio tower, or with LoRA in it; None with a `model_init`, for `hyperparameter_search`.
        args: the run.
        train_dataset: rows to train on.
        eval_dataset: rows that pick the best checkpoint; `evaluate` takes others.
        glossary: gives aliases one identity; its terms join the evaluation bank.
        hard_negatives_of: with `enable_hard_neg`: row number of a training clip and optimizer step -> positions, in the
            trainer's `glossary`, of the terms it is compared with alone; -1 for none. Left out, they are mined by the
            model itself, every `hard_neg_refresh_steps`.

    Attributes:
        card_data: Markdown for the model's card: what it was trained on.
        card_recall: rows of the card's recall table; without, those of the last evaluation, where it was of the weights
            that are saved.
        card_thresholds: rows on what the threshold does.

    Raises:
        ValueError: no terms to search, a column missing, fewer clips than one batch.
        TypeError: clips that are no `datasets.Dataset`; a part that the trainer makes itself, such as a data_collator.
        RuntimeError: the launcher promised more processes than run.

    Example:
        >>> rows = load_dataset("builders/term_audio")                                      # doctest: +SKIP
        >>> trainer = TermRetrievalTrainer(model, args, rows["train"], rows["validation"])  # doctest: +SKIP
        >>> trainer.train()                                                                 # doctest: +SKIP
        >>> trainer.evaluate(rows["test"], metric_key_prefix="test")                        # doctest: +SKIP
    """

    # The loss is a mean over the micro-batch: without this, transformers 5 does not divide it by the number of
    # accumulation steps when the model's forward takes **kwargs.
    loss_is_scaled_for_ga = False
    args: TermRetrievalArguments
    card_data: str | None = None
    card_recall: list[dict[str, Any]] | None = None
    card_thresholds: list[dict[str, Any]] | None = None
    _miner: HardNegativeMiner | None = None

    def __init__(
        self,
        model: TermRetrievalModel | None,
        args: TermRetrievalArguments,
        train_dataset: datasets.Dataset | None = None,
        eval_dataset: datasets.Dataset | None = None,
        glossary: Glossary | None = None,
        hard_negatives_of: Callable[[int, int], Sequence[int]] | None = None,
        **kwargs: Any,
    ):
        check_internals()
        refuse_launch(args)
        refuse_own_parts(kwargs)
        for rows in (train_dataset, eval_dataset):
            if rows is not None:
                check_rows(rows)
        if train_dataset is not None:
            glossary = training_glossary(train_dataset, glossary)
        if glossary is None:
            raise ValueError("give a train_dataset or a glossary: without either there are no terms to search")
        self.args = args
        self.trials = Trials(self)
        # `model_init` makes the models of the trials; the first is made here, for the clips to be prepared with.
        self._first_model = None
        if model is None:
            model = self._first_model = _first_model(kwargs.get("model_init"), args.seed)
        self.use_model(model)
        self.glossary = glossary
        trained = spoken_terms(train_dataset) if train_dataset is not None else []
        known = (glossary.id_of(term.text, term.language) for term in trained)
        self.trained_ids = {identity for identity in known if identity is not None}
        self.data_identity = {} if train_dataset is None else data_identity(train_dataset, glossary)
        prepared = partial(prepare_clips, model=model, glossary=glossary, args=args)
        self.train_clips = None if train_dataset is None else prepared(train_dataset, augmented=True)
        eval_clips = None if eval_dataset is None else prepared(eval_dataset)
        given = [*(kwargs.pop("callbacks", None) or ()), *self._refresh_callbacks(hard_negatives_of)]
        self.callbacks = RunCallbacks(args, given, lambda: check_memory(self))
        self.losses = LossMeans()
        self.checkpoints = Checkpoints(self, self.callbacks)
        self.publisher = Publisher(self, self.checkpoints)
        super().__init__(
            model=None if self._first_model is not None else model,
            args=args,
            # Evaluation reads clips by itself; training sets a `TermCollator`.
            data_collator=list,  # type: ignore[arg-type]
            train_dataset=self.train_clips,
            eval_dataset=eval_clips,
            callbacks=list(self.callbacks.in_order),
            **kwargs,
        )
        # A tracker takes a log line as it finds it: after the callbacks that add to the line.
        for tracker in get_reporting_integration_callbacks(args.report_to):
            if (callback := self.pop_callback(tracker)) is not None:
                self.add_callback(callback)

    def _refresh_callbacks(
        self, hard_negatives_of: Callable[[int, int], Sequence[int]] | None
    ) -> list[TrainerCallback]:
        """What mines, unless negatives are given."""
        args = self.args
        self.hard_negatives_of = hard_negatives_of if args.enable_hard_neg else None
        if not args.enable_hard_neg or hard_negatives_of is not None or self.train_clips is None:
            return []
        folder, ahead = Path(args.output_dir, "hard_negatives"), args.steps_built_ahead
        table = HardNegativeTable(folder, args.hard_neg_refresh_steps, ahead, self.data_identity)
        self.hard_negatives_of = table
        return [HardNegativeRefreshCallback(table, self.mine_hard_negatives)]

    def use_model(self, model: TermRetrievalModel) -> None:
        """Train this model from now on, its logits as the settings let them start.

        Raises:
            ValueError: frames of a frozen tower were computed by another than this model's.
        """
        check_shares_frames(getattr(self, "retrieval_model", model), model)
        self.retrieval_model = model
        self._start_logits()
        if self.args.phoneme_loss_weight:
            model.train_phoneme_head(alone=self.args.phoneme_head_alone)
        elif model.phoneme_head is not None:
            model.phoneme_head.requires_grad_(False)  # what the loss does not use must not wait for a gradient (DDP)

    def _start_logits(self) -> None:
        args = self.args
        self.retrieval_model.start_logits(args.temperature, with_bias=args.loss == "sigmoid", bias=args.sigmoid_bias)

    # ---- clips and batches ------------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch on the device, where its clips are distorted."""
        inputs = super()._prepare_inputs(inputs)
        return {**inputs, "model_inputs": distort_inputs(inputs["model_inputs"])}

    def get_train_dataloader(self) -> DataLoader:
        if self.train_clips is None:
            raise ValueError("training needs a train_dataset")
        args, model = self.args, self.retrieval_model
        self._step_flops = StepFlops(model)
        evaluated = [self.eval_dataset] if isinstance(self.eval_dataset, TrainingClips) else []
        quiet = bool(args.disable_tqdm)
        cache_frozen_texts(
            model, self.glossary, [self.train_clips, *evaluated], batch_size=args.eval_batch_size, quiet=quiet
        )
        self.data_collator = TermCollator(
            load_audio=audio_source(self.train_clips, model, args),
            window_spans=model.window_spans,
            tokenize=model.text_tower.tokenize,  # not `model.tokenize`: a spawned worker would pickle the model
            frame_rate=model.frame_rate,
            span_jitter=args.span_jitter,
            bank=self.glossary,
            bank_negatives=args.bank_negatives,
            hard_negatives_of=self.hard_negatives_of,
            hard_neg_k=args.hard_neg_k,
            no_term_queries=args.no_term_weight > 0,
            pronunciations=model.phoneme_head.alphabet.pronunciations
            if model.phoneme_head is not None and args.phoneme_loss_weight
            else None,
        )
        sampler = self._get_train_sampler(self.train_clips)
        return EpochLoader.of_run(self.train_clips, sampler, self.data_collator, args)

    def _get_train_sampler(self, train_dataset: Any = None) -> GlobalBatchSampler:
        return batch_sampler(train_dataset.durations, self.args, self._train_batch_size)

    def mine_hard_negatives(self) -> NDArray[np.int32]:
        """Terms of `glossary` that each training clip is to be told from, int32 (clips, hard_neg_k), on every rank."""
        if self.train_clips is None:
            raise ValueError("mining needs a train_dataset")
        if self._miner is None:
            self._miner = HardNegativeMiner(self.train_clips, self.glossary, self.args)
        return self._miner.mine(self.retrieval_model)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of a step; see `RunTrainer`."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.args.phoneme_loss_weight:
            note_spoken_clips(batches, device)
        return batches, num_items

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Useful operations of a micro-batch of this rank, see `StepFlops`; the Trainer sums them in `total_flos`."""
        return self._step_flops(inputs["model_inputs"])

    # ---- loss -------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This rank's share of the objective; see `losses/objective.py`."""
        outputs = model(**inputs["model_inputs"])
        loss = self._loss_of(embeddings_of(outputs), inputs)
        return (loss, outputs) if return_outputs else loss

    def _loss_of(self, embeddings: Embeddings, batch: dict[str, Any]) -> torch.Tensor:
        # `Trainer.objective` is what a hyperparameter search optimises: a name that is taken.
        parts = self.args.objective()(embeddings, batch)
        loss = parts.pop("loss")
        self.losses.add(parts, finite=loss.detach().isfinite())
        return loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Forward and backward of one micro-batch: at once, or by GradCache in chunks of clips."""
        chunk_size = self.args.gradcache_chunk
        one_size = self.args.max_batch_seconds is None
        if chunk_size is None or (one_size and chunk_size >= self._train_batch_size):
            return super().training_step(model, inputs, num_items_in_batch)
        loss = self._gradcache_step(model, inputs, chunk_size)
        self.callbacks.note_loss(loss)
        return loss

    def _gradcache_step(self, model, inputs, chunk_size: int) -> torch.Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        share = 1 / self.current_gradient_accumulation_steps
        loss = gradcache_step(
            model,
            inputs["model_inputs"],
            lambda embeddings: self._loss_of(embeddings, inputs),
            chunk_size,
            backward=lambda product: self.accelerator.backward(product * share),
            no_sync=lambda: self.accelerator.no_sync(model),
        )
        return loss * share

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss to a training log line, as means over steps and ranks."""
        if "loss" in logs:
            logs |= self.losses.take(self.args.device)
            logs["temperature"] = float((-self.retrieval_model.logit_scale.detach()).exp())
        super().log(logs, start_time)

    # ---- evaluation -------------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Recall@{1,5,10} and MRR of every (clip, term) pair, all, seen and unseen apart; the same on any rank count.

        Args:
            eval_dataset: rows of the row schema; default the `eval_dataset` of the trainer.
        """
        if isinstance(eval_dataset, datasets.Dataset):
            eval_dataset = prepare_clips(eval_dataset, self.retrieval_model, self.glossary, self.args)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        clips, model = dataloader.dataset, self.retrieval_model
        load_audio = audio_source(clips, model, self.args)
        metrics = evaluate_recall(
            model, clips, load_audio, self.glossary, self.trained_ids, batch_size=self.args.eval_batch_size
        )
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=named, num_samples=len(clips))

    @property
    def weights_step(self) -> int:
        """The step that the model's weights are of, see `Checkpoints.weights_step`."""
        return self.checkpoints.weights_step

    def _card(self) -> str:
        last = self.checkpoints.weights_metrics(f"eval_{MAIN_METRIC}")
        return model_card(
            self.retrieval_model.config,
            repository=self.hub_model_id or "",
            data=self.card_data,
            recall=self.card_recall or recall_rows(last, "eval", "evaluation"),
            thresholds=self.card_thresholds,
            step=self.weights_step or None,
            epoch=self.checkpoints.weights_epoch,
        )

    # ---- hyperparameter search --------------------------------------------------------------------------------

    def hyperparameter_search(  # type: ignore[override]
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str = "maximize",
        backend: str = "optuna",
        hp_name: Callable[[Any], str] | None = None,
        **kwargs: Any,
    ) -> BestRun:
        """Train `n_trials` times with different settings, each in a folder `run-<number>` of `output_dir`.

        A trial that stops on losses that are not finite, or that does not fit into memory, counts as failed, and the
        search goes on; one that optuna prunes counts as pruned.

        Args:
            hp_space: an optuna trial -> settings by their names in `TermRetrievalArguments`; `default_hp_space`.
            compute_objective: metrics of an evaluation -> what is optimised; Recall@10, then MRR. A trial is worth its
                best evaluation.
            n_trials: runs.
            direction: "maximize" or "minimize".
            backend: "optuna"; with the others of transformers the trials are as it makes them.
            hp_name: a trial -> its folder.
            kwargs: for `optuna.create_study` and `Study.optimize`, such as `pruner`, `storage`, `timeout`.

        Raises:
            RuntimeError: the trainer was given a model, not a `model_init`.
        """
        with self.trials.of_this_run():
            return super().hyperparameter_search(  # type: ignore[return-value]
                hp_space or default_hp_space(self.args),
                self.trials.best_so_far(compute_objective or recall_then_mrr, direction, backend),
                n_trials,
                direction,
                backend,
                hp_name or (lambda trial: f"run-{trial.number}"),
                **(kwargs_of_study(kwargs) if backend == "optuna" else kwargs),
            )

    def call_model_init(self, trial: Any = None) -> TermRetrievalModel:
        """The model of a trial. The first is the one that the clips were prepared with."""
        model: Any = self._first_model or super().call_model_init(trial)
        self._first_model = None
        self.trials.forget_settings()
        self.use_model(model)
        return model

    def _hp_search_setup(self, trial: Any) -> None:
        """Start a trial as a run of its own would start."""
        self.trials.forget_settings()
        super()._hp_search_setup(trial)
        if trial is None or not self.trials.are_running:
            return
        if "per_device_train_batch_size" in trial.params:
            self.args.contrastive_batch_size = None
        self.args.check_objective()
        self._start_logits()  # the model was made before the trial's settings were known
        self.callbacks.begin_trial()


def _first_model(model_init: Callable[..., TermRetrievalModel] | None, seed: int) -> TermRetrievalModel:
    """What `model_init` gives before there is a trial."""
    if model_init is None:
        raise ValueError("give a model, or a model_init that makes one for each trial of a hyperparameter search")
    set_seed(seed)
    return model_init(None) if number_of_arguments(model_init) else model_init()
