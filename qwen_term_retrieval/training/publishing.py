"""What a run leaves behind: checkpoints that are models with a card, on disk and, with `push_to_hub`, on the Hub.

The Trainer of transformers 5.23 uploads the output folder as it is: without a card until the end, with the tables of
hard negatives, caches that lie there and a pickle of the settings, token included; a checkpoint may be deleted while
its upload reads it; and the first upload that fails ends the run before its model is saved. Here

- the repository's root is always one whole model with its card, put there in one commit;
- that commit is tagged `step-600`; the tags `best` and `final` move;
- a push that fails is said and costs nothing but itself. The last one fails when all is on disk.

Tags name what was pushed last: a resumed run that comes to step 600 again moves `step-600`.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError, RevisionNotFoundError
from huggingface_hub.utils import httpx
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_utils import HubStrategy

from qwen_term_retrieval.evaluation.evaluator import RECALL_AT
from qwen_term_retrieval.evaluation.report import GROUPS
from qwen_term_retrieval.models.model_card import model_card
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.trainer_callbacks.best_evaluation import is_best
from qwen_term_retrieval.training.arguments import TermRetrievalArguments

logger = logging.getLogger(__name__)

MODEL_FILES = ("config.json", "README.md", "*.safetensors", "*.safetensors.index.json")
# Of a checkpoint to resume from, all but a pickle of the settings: nothing reads it, and it holds the token.
NOT_IN_CHECKPOINTS = "training_args.bin"
_STAGING = ".push"
_MAIN = f"recall@{RECALL_AT[0]}"


class HubPushError(RuntimeError):
    """A model did not reach the Hub; it is on disk."""


class HubTrainer(Trainer):
    """A Trainer of a `TermRetrievalModel`: which of its checkpoints is the best, their cards, and the Hub.

    Args:
        card_data: Markdown for the card: what the model was trained on.
        card_recall: rows of the card's recall table; without, those of the last evaluation, where it was of the weights
            that are saved.
        card_thresholds: rows on what the threshold does.
    """

    card_data: str | None = None
    card_recall: list[dict[str, Any]] | None = None
    card_thresholds: list[dict[str, Any]] | None = None
    args: TermRetrievalArguments
    retrieval_model: TermRetrievalModel
    _api: HfApi | None = None
    _pushes: Sequence[Future[CommitInfo]] = ()

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Break ties by MRR, and save what is best or last though `save_every_epochs` would pass over it."""
        best = is_best(self.args, self.state, metrics)
        super()._determine_best_metric(metrics=metrics, trial=trial)
        if best and self.state.best_global_step is not None:
            self.state.best_global_step = self.state.global_step
        if self.args.save_every_epochs > 1 and (best or self.control.should_training_stop):
            self.control.should_save = True
        return best

    def _run_epoch(self, **settings: Any) -> None:  # type: ignore[override]
        """Leave a run that was resumed at its end where it is: the Trainer would take another step, or many."""
        stopped_early = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )
        if stopped_early or self.state.global_step >= self.state.max_steps:
            logger.info("the run had come to its end at step %d: there is nothing to train", self.state.global_step)
            self.control.should_training_stop = True
            return
        super()._run_epoch(**settings)

    # ---- the card ---------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
            (folder / "README.md").write_text(self._card(), encoding="utf-8")

    def create_model_card(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Write the model's own card into `output_dir`."""
        if self.is_world_process_zero():
            Path(str(self.args.output_dir), "README.md").write_text(self._card(), encoding="utf-8")

    def _card(self) -> str:
        step = self.weights_step
        epochs = [entry["epoch"] for entry in self.state.log_history if entry["step"] == step and "epoch" in entry]
        return model_card(
            self.retrieval_model.config,
            repository=self.hub_model_id or "",
            data=self.card_data,
            recall=self.card_recall or recall_rows(self._metrics_of(step), "eval", "evaluation"),
            thresholds=self.card_thresholds,
            step=step or None,
            epoch=epochs[-1] if epochs else self.state.epoch if step == self.state.global_step else None,
        )

    @property
    def weights_step(self) -> int:
        """The step that the model's weights are of: the last, or that of the best checkpoint, once it is loaded."""
        best = self.state.best_model_checkpoint
        was_loaded = not self.is_in_train and self.args.load_best_model_at_end and best and Path(best).is_dir()
        return int(self.state.best_global_step or 0) if was_loaded else self.state.global_step

    def _metrics_of(self, step: int) -> dict[str, float]:
        found = [entry for entry in self.state.log_history if entry["step"] == step and f"eval_{_MAIN}" in entry]
        return found[-1] if found else {}

    # ---- the Hub ----------------------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, before the first step.

        Raises:
            HubPushError: it cannot be made: no token, no right, no Hub.
        """
        name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
        try:
            super().init_hf_repo(token=token, private=private)
        except (httpx.HTTPError, OSError, HFValidationError) as error:
            raise HubPushError(
                f"--push_to_hub: the Hub does not take the repository {name!r}: {_first_line(error)}. Log in with `hf "
                "auth login` or set HF_TOKEN to a token that may write there, name it by --hub_model_id USER/NAME, or "
                "train without --push_to_hub: the model can be uploaded afterwards."
            ) from error
        if self.is_world_process_zero():
            shutil.rmtree(self._staging, ignore_errors=True)  # of a run that was killed

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint in the background; while another push is under way, only the best and on request all."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END or self.state.is_hyper_param_search:
            return
        step = self.state.global_step
        is_best = step == self.state.best_global_step
        done = [push for push in self._pushes if push.done()]
        under_way = [push for push in self._pushes if push not in done]
        self._report(done)
        self._pushes = under_way
        if under_way and not is_best and not self.args.hub_always_push:
            logger.info("step %d is not pushed: another push is under way; --hub_always_push pushes every one", step)
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        checkpoint = Path(checkpoint_folder)
        resumable = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        try:
            staged = self._stage(checkpoint, f"step-{step}", resumable.get(HubStrategy(strategy)))
        except OSError as error:
            logger.warning("step %d is not pushed, it could not be copied aside: %s", step, _first_line(error))
            return
        tags = [f"step-{step}", *(["best"] if is_best else [])]
        title = f"Step {step}, epoch {self.state.epoch or 0:.2f}"
        self._pushes = [*under_way, self._start_push(staged, title, tags)]

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
        self._finish_current_push()
        try:
            staged = self._stage(Path(str(self.args.output_dir)), "final")
        except OSError as error:
            raise self._not_pushed(error) from error
        tags = ["final", *(["best"] if self.weights_step == self.state.best_global_step else [])]
        push = self._start_push(staged, commit_message or "End of training", tags, token=token, revision=revision)
        if not blocking:
            return push
        if failed := push.exception():
            raise self._not_pushed(failed) from failed
        return push.result()

    def _not_pushed(self, error: BaseException) -> HubPushError:
        return HubPushError(
            f"the model is whole in {self.args.output_dir}, but the push to {self.hub_model_id} failed: "
            f"{_first_line(error)}. Run the same command again with --resume, or push it with `hf upload "
            f"{self.hub_model_id} {self.args.output_dir} . --include config.json --include README.md --include "
            "'*.safetensors*' --exclude 'checkpoint-*'`."
        )

    def _finish_current_push(self) -> None:
        """Wait for what is under way."""
        self._report(self._pushes)
        self._pushes = ()

    def _report(self, pushes: Iterable[Future[CommitInfo]]) -> None:
        for push in pushes:
            if error := push.exception():
                logger.warning(
                    "a checkpoint did not reach %s; it is on disk, the run goes on, and pushes the next: %s",
                    *(self.hub_model_id, _first_line(error)),
                )

    @property
    def _staging(self) -> Path:
        return Path(str(self.args.output_dir), _STAGING)

    def _stage(self, folder: Path, name: str, whole: str | None = None) -> Path:
        """Copy the files of a model aside: what is pushed must not change, nor be deleted, meanwhile.

        whole: a folder for the checkpoint as well, to resume from.
        """
        staged = self._staging / name
        shutil.rmtree(staged, ignore_errors=True)
        try:
            staged.mkdir(parents=True)
            for pattern in MODEL_FILES:
                for file in folder.glob(pattern):
                    shutil.copy2(file, staged)
            if whole is not None:
                shutil.copytree(folder, staged / whole, ignore=shutil.ignore_patterns(NOT_IN_CHECKPOINTS))
        except OSError:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        return staged

    def _start_push(
        self, staged: Path, title: str, tags: list[str], *, token: str | None = None, revision: str | None = None
    ) -> Future[CommitInfo]:
        if self._api is None:
            self._api = HfApi(token=token or self.args.hub_token)  # runs one push after the other
        repo_id, revision = str(self.hub_model_id), revision or self.args.hub_revision
        return self._api.run_as_future(push_folder, self._api, repo_id, staged, title, tags, revision)


def push_folder(
    api: HfApi, repo_id: str, folder: Path, title: str, tags: Iterable[str], revision: str | None = None
) -> CommitInfo:
    """Upload what is in `folder` in one commit, move `tags` to it, and delete `folder`.

    Files of the repository that `folder` lacks stay. Where nothing changed there is no commit; the tags move to the
    last one.
    """
    try:
        operations = [
            CommitOperationAdd(file.relative_to(folder).as_posix(), file)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        ]
        commit = api.create_commit(repo_id, operations, commit_message=title, revision=revision)
        for tag in tags:
            move_tag(api, repo_id, tag, commit.oid)
    finally:
        shutil.rmtree(folder)
    return commit


def move_tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    """Let `tag` name `commit`, whatever it named before. The Hub moves none, so for a moment the tag is gone."""
    with contextlib.suppress(RevisionNotFoundError):
        api.delete_tag(repo_id, tag=tag)
    api.create_tag(repo_id, tag=tag, revision=commit)


def recall_rows(metrics: dict[str, float], prefix: str, split: str) -> list[dict[str, Any]]:
    """Rows of the card's recall table from metrics such as `eval_recall@10` and `eval_recall@10_unseen`."""
    names = [*(f"recall@{k}" for k in RECALL_AT), "mrr"]
    return [
        {"split": split, "terms": group, "pairs": int(metrics[f"{prefix}_pairs{suffix}"])}
        | {name: metrics[f"{prefix}_{name}{suffix}"] for name in names}
        for suffix, group in GROUPS.items()
        if f"{prefix}_{_MAIN}{suffix}" in metrics
    ]


def threshold_rows(metrics: dict[str, float], prefix: str, split: str) -> list[dict[str, Any]]:
    """A row of the card's threshold table from metrics such as `test_precision`; none where no threshold was tried."""
    names = ("precision", "recall", "f1", "false_alarms_per_minute")
    if f"{prefix}_precision" not in metrics:
        return []
    return [{"split": split} | {name: metrics.get(f"{prefix}_{name}") for name in names}]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
