"""`TermRetrievalTrainer`: the Hugging Face Trainer for audio-text and audio-term contrastive training.

What it adds to `transformers.Trainer`:

- the objective of `losses/objective.py`, over all ranks, and by GradCache over batches larger than memory;
- a guard that takes no step on a loss or gradient that is not finite on any rank;
- batches whose order is a function of (seed, epoch, position), so a resumed run takes the very same steps;
- with a frozen audio tower, its frames computed once and read from disk afterwards;
- Recall@k on seen and unseen terms inside `evaluation_loop`, where early stopping and the best checkpoint see it.

Two ranks with b clips each take the same steps as one rank with 2b.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, number_of_arguments, set_seed

from qwen_term_retrieval.distributed import world_size
from qwen_term_retrieval.losses.objective import Embeddings
from qwen_term_retrieval.models.flops import StepFlops
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.models.text_towers.tower import pronouncer_of
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.text.pronouncing import Pronouncer
from qwen_term_retrieval.trainer_callbacks import (
    HardNegativeRefreshCallback,
    MemoryCheckCallback,
    NonFiniteGuardCallback,
    PatienceCallback,
    SaveEveryEpochsCallback,
    ThroughputCallback,
)
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.checks.term_memory import check_memory
from qwen_term_retrieval.training.checks.unsupported import refuse_launch, refuse_own_parts
from qwen_term_retrieval.training.data.audio_source import distort_inputs
from qwen_term_retrieval.training.data.clips import TrainingClips, spoken_terms, training_glossary
from qwen_term_retrieval.training.data.collator import TermCollator
from qwen_term_retrieval.training.data.frozen_texts import cache_frozen_texts
from qwen_term_retrieval.training.data.loader import EpochLoader
from qwen_term_retrieval.training.data.preparation import audio_source, check_rows, prepare_clips
from qwen_term_retrieval.training.data.sampling import DurationBatchSampler, GlobalBatchSampler, LengthBucketedSampler
from qwen_term_retrieval.training.gradcache import gradcache_step
from qwen_term_retrieval.training.negatives.phonetic import sounding_alike
from qwen_term_retrieval.training.negatives.table import HardNegativeTable, mine_hard_negatives, mix_negatives
from qwen_term_retrieval.training.publishing import HubTrainer
from qwen_term_retrieval.training.recall import evaluate_recall
from qwen_term_retrieval.training.resuming import ResumableTrainer, data_identity
from qwen_term_retrieval.training.search import SearchableTrainer


class TermRetrievalTrainer(SearchableTrainer, ResumableTrainer, HubTrainer):
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
        refuse_launch(args)
        refuse_own_parts(kwargs)
        if eval_dataset is not None:
            check_rows(eval_dataset)
        if train_dataset is not None:
            check_rows(train_dataset)
            glossary = training_glossary(train_dataset, glossary)
        if glossary is None:
            raise ValueError("give a train_dataset or a glossary: without either there are no terms to search")
        self.args = args
        if model is None:
            model = self._first_model = _first_model(kwargs.get("model_init"), args.seed)
        self.use_model(model)
        self.glossary = glossary
        trained = spoken_terms(train_dataset) if train_dataset is not None else []
        known = (glossary.id_of(term.text, term.language) for term in trained)
        self.trained_ids = {identity for identity in known if identity is not None}
        self.data_identity = None if train_dataset is None else data_identity(train_dataset, glossary)
        callbacks = list(kwargs.pop("callbacks", []))
        if args.check_memory:
            callbacks.insert(0, MemoryCheckCallback(lambda: check_memory(self)))
        self._sounding_alike: NDArray[np.int32] | None = None
        self._loss_sums: dict[str, torch.Tensor | float] = {}
        self._losses_summed: torch.Tensor | float = 0.0
        prepared = partial(prepare_clips, model=model, glossary=glossary, args=args)
        self.train_clips = None if train_dataset is None else prepared(train_dataset, augmented=True)
        eval_clips = None if eval_dataset is None else prepared(eval_dataset)
        if args.enable_hard_neg and hard_negatives_of is None and self.train_clips is not None:
            folder, ahead = Path(args.output_dir, "hard_negatives"), args.steps_built_ahead
            hard_negatives_of = HardNegativeTable(folder, args.hard_neg_refresh_steps, ahead, self.data_identity or {})
            callbacks.append(HardNegativeRefreshCallback(hard_negatives_of, self.mine_hard_negatives))
        self.hard_negatives_of = hard_negatives_of if args.enable_hard_neg else None
        if args.patience and args.load_best_model_at_end:
            callbacks.append(PatienceCallback(args.patience))
        if args.save_every_epochs != 1:
            callbacks.append(SaveEveryEpochsCallback(args.save_every_epochs))
        if args.skip_nonfinite_steps:
            callbacks.append(NonFiniteGuardCallback(args.max_nonfinite_steps))
        super().__init__(
            model=None if self._first_model is not None else model,
            args=args,
            data_collator=_as_they_are,
            train_dataset=self.train_clips,
            eval_dataset=eval_clips,
            callbacks=callbacks,
            **kwargs,
        )
        # A tracker takes a log line as it finds it: after the callbacks that add to the line.
        for tracker in get_reporting_integration_callbacks(args.report_to):
            if (callback := self.pop_callback(tracker)) is not None:
                self.add_callback(callback)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """See `Trainer.train`. The workers that build batches end with it, also where it raises."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if isinstance(self.callback_handler.train_dataloader, EpochLoader):
                self.callback_handler.train_dataloader.close()

    # ---- clips and batches ------------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch on the device, where its clips are distorted."""
        inputs = super()._prepare_inputs(inputs)
        return {**inputs, "model_inputs": distort_inputs(inputs["model_inputs"])}

    def get_train_dataloader(self) -> DataLoader:
        if self.train_clips is None:
            raise ValueError("training needs a train_dataset")
        model = self.retrieval_model
        self._step_flops = StepFlops(model)
        evaluated = [self.eval_dataset] if isinstance(self.eval_dataset, TrainingClips) else []
        cache_frozen_texts(
            model,
            self.glossary,
            [self.train_clips, *evaluated],
            batch_size=self.args.eval_batch_size,
            quiet=bool(self.args.disable_tqdm),
        )
        self.data_collator = TermCollator(
            load_audio=audio_source(self.train_clips, model, self.args),
            window_spans=model.window_spans,
            tokenize=model.text_tower.tokenize,  # not `model.tokenize`: a spawned worker would pickle the model
            frame_rate=model.frame_rate,
            span_jitter=self.args.span_jitter,
            bank=self.glossary,
            bank_negatives=self.args.bank_negatives,
            hard_negatives_of=self.hard_negatives_of,
            hard_neg_k=self.args.hard_neg_k,
            no_term_queries=self.args.no_term_weight > 0,
        )
        return EpochLoader(
            self.train_clips,
            self._get_train_sampler(self.train_clips),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=self.args.dataloader_persistent_workers,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            in_order=self.args.dataloader_in_order,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> GlobalBatchSampler:
        args, durations = self.args, train_dataset.durations
        seed = args.seed if args.data_seed is None else args.data_seed
        share = {"rank": args.process_index, "num_ranks": args.world_size}
        share["batches_per_step"] = args.gradient_accumulation_steps
        if args.max_batch_seconds is None:
            return LengthBucketedSampler(durations, self._train_batch_size * args.world_size, seed, **share)
        divisible_by = math.lcm(8, args.world_size)
        return DurationBatchSampler(durations, args.max_batch_seconds, seed, divisible_by=divisible_by, **share)

    def mine_hard_negatives(self) -> NDArray[np.int32]:
        """Terms of `glossary` that each training clip is to be told from, int32 (clips, hard_neg_k), on every rank."""
        if self.train_clips is None:
            raise ValueError("mining needs a train_dataset")
        # As they were recorded: what is near to a distorted clip is near to its distortion.
        clips = TrainingClips(self.train_clips.rows, self.train_clips.frame_cache)
        k, show_progress = self.args.hard_neg_k, not self.args.disable_tqdm
        mined_CK = mine_hard_negatives(
            self.retrieval_model,
            clips,
            audio_source(clips, self.retrieval_model, self.args),
            self.glossary,
            k,
            max_positive_ratio=self.args.hard_neg_max_positive_ratio,
            batch_size=self.args.eval_batch_size,
            show_progress=show_progress,
        )
        if not self.args.hard_neg_phonetic_ratio:
            return mined_CK
        if self._sounding_alike is None:
            own = pronouncer_of(self.retrieval_model.text_tower)
            pronouncer = own or Pronouncer(self.args.hard_neg_phonemizer)
            self._sounding_alike = sounding_alike(clips, self.glossary, pronouncer, k, show_progress=show_progress)
        return mix_negatives(mined_CK, self._sounding_alike, self.args.hard_neg_phonetic_ratio)

    # ---- loss -------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This rank's share of the objective; see `losses/objective.py`."""
        outputs = model(**inputs["model_inputs"])
        embeddings = Embeddings(outputs.audio_PD, outputs.text_ND, outputs.logit_scale, outputs.get("logit_bias"))
        loss = self._loss_of(embeddings, inputs)
        return (loss, outputs) if return_outputs else loss

    def _loss_of(self, embeddings: Embeddings, batch: dict[str, Any]) -> torch.Tensor:
        # `Trainer.objective` is what a hyperparameter search optimises: a name that is taken.
        losses = self.args.objective()(embeddings, batch)
        loss = losses.pop("loss")
        finite = loss.detach().isfinite()
        for name, part in losses.items():
            self._loss_sums[name] = self._loss_sums.get(name, 0.0) + torch.where(finite, part.detach(), 0.0)
        self._losses_summed = self._losses_summed + finite
        return loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Forward and backward of one micro-batch: at once, or by GradCache in chunks of clips."""
        chunk_size = self.args.gradcache_chunk
        one_size = self.args.max_batch_seconds is None
        if chunk_size is None or (one_size and chunk_size >= self._train_batch_size):
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self._gradcache_step(model, inputs, chunk_size)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, NonFiniteGuardCallback):
                callback.see_loss(loss)
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
            totals = [*self._loss_sums.values(), self._losses_summed]
            sums = torch.stack([torch.as_tensor(total, dtype=torch.float32) for total in totals]).to(self.args.device)
            if world_size() > 1:
                dist.all_reduce(sums)
            if sums[-1] > 0:
                logs |= dict(zip(self._loss_sums, (sums[:-1] / sums[-1]).tolist(), strict=True))
            logs["temperature"] = float((-self.retrieval_model.logit_scale.detach()).exp())
            self._loss_sums = {}
            self._losses_summed = 0.0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Useful operations of a micro-batch of this rank, see `StepFlops`; the Trainer sums them in `total_flos`."""
        return self._step_flops(inputs["model_inputs"])

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of a step; how long they were waited for goes to the log."""
        began = time.perf_counter()
        batches = super().get_batch_samples(epoch_iterator, num_batches, device)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ThroughputCallback):
                callback.see_wait(began)
        return batches

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
        clips = dataloader.dataset
        metrics = evaluate_recall(
            self.retrieval_model,
            clips,
            audio_source(clips, self.retrieval_model, self.args),
            self.glossary,
            self.trained_ids,
            batch_size=self.args.eval_batch_size,
        )
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=named, num_samples=len(clips))


def _first_model(model_init: Callable[..., TermRetrievalModel] | None, seed: int) -> TermRetrievalModel:
    """What `model_init` gives before there is a trial."""
    if model_init is None:
        raise ValueError("give a model, or a model_init that makes one for each trial of a hyperparameter search")
    set_seed(seed)
    return model_init(None) if number_of_arguments(model_init) else model_init()


def _as_they_are(rows: list[Any]) -> dict[str, Any]:
    """Batches for evaluation, which reads clips by itself; training sets a `TermCollator`."""
    return {"rows": rows}
