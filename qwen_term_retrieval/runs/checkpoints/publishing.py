"""What a run leaves on the Hub: checkpoints that are models with a card.

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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError, RevisionNotFoundError
from huggingface_hub.utils import httpx
from transformers import Trainer
from transformers.trainer_utils import HubStrategy

from qwen_term_retrieval.runs.checkpoints.best import Checkpoints

logger = logging.getLogger(__name__)

MODEL_FILES = ("config.json", "README.md", "*.safetensors", "*.safetensors.index.json")
# In a checkpoint to resume from all is wanted but a pickle of the settings: nothing reads it, and it holds the token.
NOT_IN_CHECKPOINTS = "training_args.bin"
_STAGING = ".push"


class HubPushError(RuntimeError):
    """A model did not reach the Hub; it is on disk."""


class Publisher:
    """Pushes the checkpoints of a run of any `Trainer`, and at its end the model.

    Args:
        trainer: whose run it is. Its checkpoints hold a card, and nothing that must not be published beside
            `NOT_IN_CHECKPOINTS`.
        checkpoints: say which one is the best.
        files: patterns of the files that make a model.
    """

    def __init__(self, trainer: Trainer, checkpoints: Checkpoints, files: Sequence[str] = MODEL_FILES):
        self.trainer = trainer
        self.checkpoints = checkpoints
        self.files = files
        self._api: HfApi | None = None
        self._pushes: Sequence[Future[CommitInfo]] = ()

    def make_repository(self, make: Callable[[], object]) -> None:
        """Make the repository by `make`, before the first step.

        Raises:
            HubPushError: it cannot be made: no token, no right, no Hub.
        """
        trainer = self.trainer
        name = trainer.args.hub_model_id or Path(str(trainer.args.output_dir)).absolute().name
        try:
            make()
        except (httpx.HTTPError, OSError, HFValidationError) as error:
            raise HubPushError(
                f"--push_to_hub: the Hub does not take the repository {name!r}: {_first_line(error)}. Log in with `hf "
                "auth login` or set HF_TOKEN to a token that may write there, name it by --hub_model_id USER/NAME, or "
                "train without --push_to_hub: the model can be uploaded afterwards."
            ) from error
        if trainer.is_world_process_zero():
            shutil.rmtree(self._staging, ignore_errors=True)  # of a run that was killed

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Push a checkpoint in the background; while another push is under way, only the best and on request all."""
        trainer, state = self.trainer, self.trainer.state
        strategy = trainer.args.hub_strategy
        if not trainer.is_world_process_zero() or strategy == HubStrategy.END or state.is_hyper_param_search:
            return
        step = state.global_step
        is_best = step == state.best_global_step
        done = [push for push in self._pushes if push.done()]
        under_way = [push for push in self._pushes if push not in done]
        self._report(done)
        self._pushes = under_way
        if under_way and not is_best and not trainer.args.hub_always_push:
            logger.info("step %d is not pushed: another push is under way; --hub_always_push pushes every one", step)
            return
        trainer.callback_handler.on_push_begin(trainer.args, state, trainer.control)
        resumable = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        try:
            staged = self._stage(checkpoint, f"step-{step}", resumable.get(HubStrategy(strategy)))
        except OSError as error:
            logger.warning("step %d is not pushed, it could not be copied aside: %s", step, _first_line(error))
            return
        tags = [f"step-{step}", *(["best"] if is_best else [])]
        title = f"Step {step}, epoch {state.epoch or 0:.2f}"
        self._pushes = [*under_way, self._start_push(staged, title, tags)]

    def push_model(
        self, commit_message: str, *, blocking: bool, token: str | None, revision: str | None
    ) -> CommitInfo | Future[CommitInfo]:
        """Push the model in `output_dir` under the tag `final`; and `best` where it is. The main process calls it.

        Raises:
            HubPushError: the model is in `output_dir`, but not on the Hub.
        """
        self.wait()
        try:
            staged = self._stage(Path(str(self.trainer.args.output_dir)), "final")
        except OSError as error:
            raise self._not_pushed(error) from error
        is_best = self.checkpoints.weights_step == self.trainer.state.best_global_step
        push = self._start_push(
            staged, commit_message, ["final", *(["best"] if is_best else [])], token=token, revision=revision
        )
        if not blocking:
            return push
        if failed := push.exception():
            raise self._not_pushed(failed) from failed
        return push.result()

    def wait(self) -> None:
        """Wait for what is under way."""
        self._report(self._pushes)
        self._pushes = ()

    def _not_pushed(self, error: BaseException) -> HubPushError:
        folder, name = self.trainer.args.output_dir, self.trainer.hub_model_id
        return HubPushError(
            f"the model is whole in {folder}, but the push to {name} failed: "
            f"{_first_line(error)}. Run the same command again with --resume, or push it with `hf upload "
            f"{name} {folder} . --include config.json --include README.md --include "
            "'*.safetensors*' --exclude 'checkpoint-*'`."
        )

    def _report(self, pushes: Iterable[Future[CommitInfo]]) -> None:
        for push in pushes:
            if error := push.exception():
                logger.warning(
                    "a checkpoint did not reach %s; it is on disk, the run goes on, and pushes the next: %s",
                    *(self.trainer.hub_model_id, _first_line(error)),
                )

    @property
    def _staging(self) -> Path:
        return Path(str(self.trainer.args.output_dir), _STAGING)

    def _stage(self, folder: Path, name: str, whole: str | None = None) -> Path:
        """Copy the files of a model aside: what is pushed must not change, nor be deleted, meanwhile.

        whole: a folder for the checkpoint as well, to resume from.
        """
        staged = self._staging / name
        shutil.rmtree(staged, ignore_errors=True)
        try:
            staged.mkdir(parents=True)
            for pattern in self.files:
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
        args = self.trainer.args
        if self._api is None:
            self._api = HfApi(token=token or args.hub_token)  # runs one push after the other
        repo_id, revision = str(self.trainer.hub_model_id), revision or args.hub_revision
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


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
