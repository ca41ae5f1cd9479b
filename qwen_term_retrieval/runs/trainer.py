"""`RunTrainer`: what every trainer of ours adds to `transformers.Trainer`, whatever is trained.

- workers that build batches end with the training, also where it raises;
- the guard, patience and throughput hear of losses and waits;
- the best evaluation and the last are saved, ties decided, and a run that was resumed at its end is left as it is;
- a checkpoint carries a card and says what it was trained on; over other data none is gone on from;
- what is pushed to the Hub are whole models.

A subclass sets `callbacks`, `checkpoints`, `publisher`, and where it has them `data_identity` and `log_file`, before it
calls `Trainer.__init__`, and writes a card.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from qwen_term_retrieval.runs.callbacks import RunCallbacks
from qwen_term_retrieval.runs.checkpoints.best import Checkpoints
from qwen_term_retrieval.runs.checkpoints.publishing import Publisher
from qwen_term_retrieval.runs.checkpoints.resuming import check_resumable, check_same_data, keep_identity
from qwen_term_retrieval.runs.loader import EpochLoader
from qwen_term_retrieval.runs.log_file import LogFile


class RunTrainer(Trainer):
    """A Trainer around the parts of a run.

    Attributes:
        callbacks, checkpoints, publisher: of this run.
        data_identity: what it is trained on; empty: nobody asks.
        log_file: takes each log line, with what callbacks have added to it.
    """

    callbacks: RunCallbacks
    checkpoints: Checkpoints
    publisher: Publisher
    data_identity: Mapping[str, str]
    log_file: LogFile | None = None

    @abstractmethod
    def _card(self) -> str:
        """The README of the model as it is now."""

    def add_callback(self, callback: Any) -> None:
        super().add_callback(callback)
        self.callbacks.follow(self.callback_handler.callbacks)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """See `Trainer.train`. The workers that build batches end with it, also where it raises."""
        if self.log_file is not None and self.is_world_process_zero() and not resume_from_checkpoint:
            self.log_file.go_on_from(-1)  # of a run that was killed before its first checkpoint
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            if isinstance(self.callback_handler.train_dataloader, EpochLoader):
                self.callback_handler.train_dataloader.close()

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of a step; how long they were waited for goes to the log."""
        began = time.perf_counter()
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.callbacks.note_wait(began)
        return batches, num_items

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Forward and backward of one micro-batch."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.callbacks.note_loss(loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write each line, with what callbacks have added to it, to the log file too."""
        super().log(logs, start_time)
        if self.log_file is not None and self.is_world_process_zero():
            self.log_file.append(self.state.log_history[-1])

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Break ties, and save what is best or last though `save_every_epochs` would pass over it."""
        best = self.checkpoints.is_best(metrics)
        super()._determine_best_metric(metrics=metrics, trial=trial)
        self.checkpoints.note_evaluation(best)
        return best

    def _run_epoch(self, **settings: Any) -> None:  # type: ignore[override]
        """Leave a run that was resumed at its end where it is."""
        if self.checkpoints.run_is_over:
            self.checkpoints.end_run()
        else:
            super()._run_epoch(**settings)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The model with its card, and in a checkpoint what it was trained on."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
            (folder / "README.md").write_text(self._card(), encoding="utf-8")
            if self.is_in_train and self.data_identity and output_dir is not None:
                keep_identity(output_dir, self.data_identity)

    def _load_callback_state(self) -> None:
        """Restore what callbacks counted (the Trainer makes new ones), and end the log where the checkpoint was."""
        super()._load_callback_state()
        if self.log_file is not None and self.is_world_process_zero():
            self.log_file.go_on_from(self.state.global_step)
        self.callbacks.follow(self.callback_handler.callbacks)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights.

        Raises:
            ValueError: the checkpoint is of other data, or of a model alone.
        """
        check_resumable(resume_from_checkpoint)
        if self.data_identity:
            check_same_data(resume_from_checkpoint, self.data_identity)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def create_model_card(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Write the model's own card into `output_dir`."""
        if self.is_world_process_zero():
            Path(str(self.args.output_dir), "README.md").write_text(self._card(), encoding="utf-8")

    # ---- the Hub ----------------------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """See `Publisher.make_repository`."""
        self.publisher.make_repository(partial(super().init_hf_repo, token=token, private=private))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.publisher.push_checkpoint(Path(checkpoint_folder))

    def _finish_current_push(self) -> None:
        self.publisher.wait()

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Save the model with its card, and push it under the tag `final`; and `best` where it is.

        Raises:
            HubPushError: the model is in `output_dir`, but not on the Hub.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        return self.publisher.push_model(
            commit_message or "End of training", blocking=blocking, token=token, revision=revision
        )
