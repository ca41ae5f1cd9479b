"""`PretrainingTrainer`: the Hugging Face Trainer for denoising masked-token pre-training.

What it adds to `transformers.Trainer`, beside what any trainer of ours does (`runs/trainer.py`):

- batches of like length, by number or by seconds, in which everything random is a function of (seed, epoch, position);
- noise on the device, where that is no CPU;
- the loss of a step: the sum over its hidden tokens, divided by how many there are in all its micro-batches on all
  ranks; 0 where there are none;
- an evaluation that hears and hides the same each time.

Two ranks with b clips each take the steps of one with 2b, batch normalisation included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from qwen_term_retrieval.distributed import sum_over_ranks, world_size
from qwen_term_retrieval.pretraining.audio.arguments import AudioPretrainingArguments
from qwen_term_retrieval.pretraining.audio.data import NestClips, distort_batch
from qwen_term_retrieval.pretraining.audio.evaluation import evaluate_clips
from qwen_term_retrieval.pretraining.audio.flops import NestStepFlops
from qwen_term_retrieval.pretraining.audio.model import NestForPreTraining
from qwen_term_retrieval.pretraining.audio.model_card import nest_model_card
from qwen_term_retrieval.pretraining.audio.step_memory import check_memory
from qwen_term_retrieval.runs.callbacks import RunCallbacks
from qwen_term_retrieval.runs.checkpoints.best import Checkpoints
from qwen_term_retrieval.runs.checkpoints.publishing import Publisher
from qwen_term_retrieval.runs.loader import EpochLoader
from qwen_term_retrieval.runs.log_file import LogFile
from qwen_term_retrieval.runs.sampling import GlobalBatchSampler, batch_sampler
from qwen_term_retrieval.runs.trainer import RunTrainer
from qwen_term_retrieval.runs.unsupported import refuse_launch
from qwen_term_retrieval.transformers_internals import check_internals


class PretrainingTrainer(RunTrainer):
    """Train a `NestForPreTraining` on clips.

    Args:
        model: to be trained.
        args: the run.
        train_clips: to train on; made for the model's config.
        eval_clips: that pick the best checkpoint.
        callbacks: further ones.

    Attributes:
        card_data: what the model's card says it was trained on.

    Raises:
        ValueError: fewer clips than one batch.
        RuntimeError: the launcher promised more processes than run.

    Example:
        >>> clips = NestClips(load_rows("packs/speech")["train"], model.config, ClipSettings())   # doctest: +SKIP
        >>> PretrainingTrainer(model, args, clips).train()                                        # doctest: +SKIP
    """

    # The loss of a micro-batch is its share of the step's: nothing is left to divide by.
    loss_is_scaled_for_ga = True
    args: AudioPretrainingArguments
    card_data: str = "speech without labels"

    def __init__(
        self,
        model: NestForPreTraining,
        args: AudioPretrainingArguments,
        train_clips: NestClips,
        eval_clips: NestClips | None = None,
        *,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        check_internals()
        refuse_launch(args)
        self.args = args
        self.nest_model = model
        self.train_clips = train_clips
        self.data_identity = train_clips.identity()
        self._step_flops = NestStepFlops(model)
        self._sampler = batch_sampler(train_clips.durations, args, args.per_device_train_batch_size)
        self.callbacks = RunCallbacks(args, callbacks, lambda: check_memory(self))
        self.log_file = LogFile(str(args.output_dir))
        self.checkpoints = Checkpoints(self, self.callbacks)
        self.publisher = Publisher(self, self.checkpoints)
        super().__init__(
            model=model,
            args=args,
            data_collator=train_clips.batch,
            train_dataset=train_clips,
            eval_dataset=eval_clips,  # evaluation reads clips by itself
            callbacks=list(self.callbacks.in_order),
        )

    # ---- batches ----------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        return EpochLoader.of_run(self.train_clips, self._get_train_sampler(), self.data_collator, self.args)

    def _get_train_sampler(self, train_dataset: Any = None) -> GlobalBatchSampler:
        return self._sampler

    def largest_batch(self) -> tuple[int, float]:
        """Clips of this rank in the batch of an epoch that is largest with its padding, and seconds of its longest."""
        ranks, durations = self.args.world_size, self.train_clips.durations
        sizes = [(len(batch) // ranks, float(durations[batch].max())) for batch in self._sampler.batches()]
        return max(sizes, key=lambda size: size[0] * size[1])

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch on the device, where its clips are distorted."""
        return distort_batch(super()._prepare_inputs(inputs))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of a step, and how many tokens are hidden in them on all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = torch.stack([self.train_clips.num_masked(batch) for batch in batches]).sum()
        return batches, sum_over_ranks(own.to(device))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Useful operations of a micro-batch of this rank; the Trainer sums them in `total_flos`."""
        return self._step_flops(inputs)

    # ---- loss -------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's share of the step's loss; DDP takes the mean over ranks, so each counts for all."""
        output = model(**inputs)
        loss = self.nest_model.masked_token_loss(output.logits_NCH, output.tokens_NH, num_items_in_batch)
        return (loss * world_size(), output) if return_outputs else loss * world_size()

    # ---- evaluation -------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        clips: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if clips is None:
            raise ValueError("evaluation needs eval_clips")
        return DataLoader(clips, batch_size=None, sampler=range(len(clips)))

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Loss and accuracy of `eval_clips`, or of other `NestClips`, beside those of a model that hears nothing."""
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        clips: Any = dataloader.dataset
        with self.compute_loss_context_manager():
            metrics = evaluate_clips(
                self.nest_model, clips, self._prepare_inputs, batch_size=self.args.eval_batch_size,
                max_clips=self.args.max_eval_clips,
            )  # fmt: skip
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=named, num_samples=len(clips))

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def _card(self) -> str:
        return nest_model_card(
            self.nest_model.config,
            name=self.hub_model_id or str(self.args.output_dir),
            data=self.card_data,
            metrics=self.checkpoints.weights_metrics("eval_loss"),
            step=self.checkpoints.weights_step or None,
        )
