"""`TextPretrainingTrainer`: the Hugging Face Trainer for pairs of prompt and response, however many there are.

What it adds to `transformers.Trainer`:

- batches of like length out of memory-mapped pairs, whose order is a function of (seed, epoch, number): a run goes on
  in the middle of an epoch at once, and on another number of ranks;
- the loss of a step: the sum over its tokens, divided by how many there are in all its micro-batches on all ranks;
- validation loss, perplexity and bits a byte inside `evaluation_loop`, and answers to read;
- a guard that takes no step on a loss or gradient that is not finite on any rank.

What any trainer of ours overrides stands in `runs/trainer.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from qwen_term_retrieval.distributed import sum_over_ranks, world_size
from qwen_term_retrieval.pretraining.text.arguments import TextPretrainingArguments
from qwen_term_retrieval.pretraining.text.batches import Inputs, Packed, PairBatches, SideBySide
from qwen_term_retrieval.pretraining.text.evaluation import evaluate_pairs, evaluated_pairs, generate_answers
from qwen_term_retrieval.pretraining.text.flops import step_flops
from qwen_term_retrieval.pretraining.text.losses import num_labels, summed_loss
from qwen_term_retrieval.pretraining.text.model_card import text_model_card
from qwen_term_retrieval.pretraining.text.order import PairOrder, PairSampler
from qwen_term_retrieval.pretraining.text.step_memory import check_memory
from qwen_term_retrieval.runs.callbacks import RunCallbacks
from qwen_term_retrieval.runs.checkpoints.best import Checkpoints
from qwen_term_retrieval.runs.checkpoints.publishing import MODEL_FILES, Publisher
from qwen_term_retrieval.runs.loader import EpochLoader
from qwen_term_retrieval.runs.log_file import LogFile
from qwen_term_retrieval.runs.trainer import RunTrainer
from qwen_term_retrieval.runs.unsupported import refuse_launch
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.tokens.mmap_pairs import MmapPairs, PairBatch
from qwen_term_retrieval.transformers_internals import check_internals

logger = logging.getLogger(__name__)

_PUSHED_FILES = (*MODEL_FILES, "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_GENERATED_TOKENS = 64


class TextPretrainingTrainer(RunTrainer):
    """Train an encoder-decoder or a decoder on pairs.

    Args:
        model: of transformers; `build_model` makes one.
        args: the run.
        train_pairs: pairs to train on, cut at `args.max_seq_len`.
        eval_pairs: pairs that pick the best checkpoint.
        tokenizer: that made the ids; it is saved with the model.
        callbacks: further ones.

    Attributes:
        card_data: what the model's card says it was trained on.

    Raises:
        ValueError: fewer pairs than one batch; pairs cut at another length; a decoder's row that holds no pair.
        RuntimeError: the launcher promised more processes than run.

    Example:
        >>> pairs = MmapPairs("data/text/tokens/train", 192)                          # doctest: +SKIP
        >>> TextPretrainingTrainer(model, args, pairs, tokenizer=tokenizer).train()   # doctest: +SKIP
    """

    # The loss of a micro-batch is its share of the step's: nothing is left to divide by.
    loss_is_scaled_for_ga = True
    args: TextPretrainingArguments
    card_data: str = "pairs of prompt and response"

    def __init__(
        self,
        model: PreTrainedModel,
        args: TextPretrainingArguments,
        train_pairs: MmapPairs,
        eval_pairs: MmapPairs | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        check_internals()
        refuse_launch(args)
        for pairs in filter(None, (train_pairs, eval_pairs)):
            if pairs.max_seq_len != args.max_seq_len:
                raise ValueError(f"pairs are cut at {pairs.max_seq_len} tokens, but max_seq_len is {args.max_seq_len}")
        self.args = args
        self.text_model = model
        self.tokenizer = tokenizer
        self.inputs_of = self._batching(args.loss_on)
        global_batch = args.per_device_train_batch_size * args.world_size
        self.order = PairOrder(
            train_pairs,
            global_batch,
            args.seed if args.data_seed is None else args.data_seed,
            bucketed=bool(model.config.is_encoder_decoder),
            pool_batches=args.pool_batches,
        )
        self.data_identity = {
            "training pairs": train_pairs.identity(),
            "max_seq_len": str(args.max_seq_len),
            "pairs of a global micro-batch": str(global_batch),
            "pool_batches": str(args.pool_batches),
        }
        train_batches = PairBatches(
            train_pairs, self.order, self.inputs_of, rank=args.process_index, num_ranks=args.world_size
        )
        self.callbacks = RunCallbacks(args, callbacks, lambda: check_memory(self))
        self.log_file = LogFile(str(args.output_dir))
        self.checkpoints = Checkpoints(self, self.callbacks)
        self.publisher = Publisher(self, self.checkpoints, _PUSHED_FILES)
        super().__init__(
            model=model,
            args=args,
            data_collator=itemgetter(0),  # a micro-batch comes whole
            train_dataset=train_batches,
            eval_dataset=eval_pairs,  # evaluation reads pairs by itself
            processing_class=tokenizer,
            callbacks=list(self.callbacks.in_order),
        )

    # ---- batches ----------------------------------------------------------------------------------------------

    def _batching(self, loss_on: Any) -> Callable[[PairBatch], Inputs]:
        """How pairs become what the model reads."""
        pad_id = int(self.tokenizer.pad_token_id)
        if self.text_model.config.is_encoder_decoder:
            return SideBySide(pad_id, int(self.text_model.config.decoder_start_token_id))
        row_length, longest = self.args.row_length, 2 * self.args.max_seq_len
        if row_length < longest:
            raise ValueError(
                f"row_length {row_length} holds no pair of two texts of max_seq_len {self.args.max_seq_len}; give at "
                f"least {longest}"
            )
        return Packed(pad_id, row_length, loss_on)

    def get_train_dataloader(self) -> DataLoader:
        batches: Any = self.train_dataset
        return EpochLoader.of_run(batches, PairSampler(self.order), self.data_collator, self.args)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Loss, perplexity and bits a byte of the responses of `eval_pairs`, or of other `MmapPairs`."""
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        pairs: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if pairs is None:
            raise ValueError("evaluation needs eval_pairs")
        return DataLoader(pairs, batch_size=None, sampler=range(len(pairs)))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of a step, and how many tokens they learn on all ranks; the wait goes to the log."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = torch.stack([num_labels(batch) for batch in batches]).sum().to(device)
        return batches, sum_over_ranks(own)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Useful operations of a micro-batch of this rank; the Trainer sums them in `total_flos`."""
        return step_flops(self.text_model, inputs)

    # ---- loss -------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's share of the step's loss; DDP takes the mean over ranks, so each counts for all."""
        if return_outputs:
            raise ValueError("a loss is a sum over tokens here; call the model for its outputs")
        return summed_loss(model, inputs) * world_size() / num_items_in_batch

    # ---- evaluation -------------------------------------------------------------------------------------------

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Loss, perplexity and bits a byte of responses, whatever the model is trained on; the same on any ranks."""
        pairs: MmapPairs = dataloader.dataset
        indices = evaluated_pairs(pairs, self.args.max_eval_pairs)
        with self.compute_loss_context_manager():
            metrics = evaluate_pairs(
                self.text_model, pairs, indices, self._batching("response"), self.tokenizer,
                batch_size=self.args.eval_batch_size,
            )  # fmt: skip
            if metric_key_prefix == "eval" and self.is_world_process_zero() and self.args.num_generations:
                self._show_answers(pairs, indices[: self.args.num_generations])
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=named, num_samples=len(indices))

    def _show_answers(self, pairs: MmapPairs, indices: np.ndarray) -> None:
        length = min(_GENERATED_TOKENS, self.args.max_seq_len)
        answers = generate_answers(self.text_model, pairs, indices, self.tokenizer, max_new_tokens=length)
        step = self.state.global_step
        for answer in answers:
            logger.info("step %d: %r -> %r", step, answer["prompt"][:60], answer["generated"][:100])
        path = Path(str(self.args.output_dir), "generations", f"step-{step}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(json.dumps(answers, indent=1, ensure_ascii=False).encode())

    def _card(self) -> str:
        return text_model_card(
            self.text_model.config,
            name=self.hub_model_id or str(self.args.output_dir),
            data=self.card_data,
            metrics=self.checkpoints.weights_metrics("eval_loss"),
            step=self.checkpoints.weights_step or None,
        )
