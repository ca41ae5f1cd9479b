"""Which models there are: the revisions of one on the Hub, the checkpoints in a folder, the models of an author.

The numbers of each are those of its card (`models/model_card.py`); nothing is loaded.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import httpx

from qwen_term_retrieval.models.model_card import CardNumbers, read_card

logger = logging.getLogger(__name__)

LIBRARY = "qwen_term_retrieval"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Revision:
    """A commit of a model's repository that has a name: `names` are its tags, and `main` where it is the last."""

    names: tuple[str, ...]
    commit: str
    date: datetime | None
    numbers: CardNumbers


@dataclass(frozen=True)
class Checkpoint:
    """A model of a run on this machine; `num_bytes` are those of its folder, without folders in it.

    `is_best`: it has the weights of the run's best evaluation so far. `is_whole`: it was written to its end.
    """

    folder: Path
    numbers: CardNumbers
    num_bytes: int
    is_best: bool
    is_whole: bool


@dataclass(frozen=True)
class HubModel:
    """A model of this library on the Hub."""

    name: str
    date: datetime | None
    downloads: int
    likes: int


def hub_revisions(repo_id: str, *, token: str | bool | None = None) -> list[Revision]:
    """The tagged commits of a model on the Hub and its last one, newest first.

    Raises:
        FileNotFoundError: there is no such repository, or the Hub cannot be asked; says what to do.
        ValueError: the metadata of a revision's card is no YAML.
    """
    api = HfApi(token=token)
    with _hub_errors(repo_id):
        refs = api.list_repo_refs(repo_id)
        commits = api.list_repo_commits(repo_id)
    names = defaultdict(list)
    for ref in [*(branch for branch in refs.branches if branch.name == "main"), *refs.tags]:
        names[ref.target_commit].append(ref.name)
    order = {commit.commit_id: place for place, commit in enumerate(commits)}
    dates = {commit.commit_id: commit.created_at for commit in commits}
    # A tag on a branch, or of a history that was rewritten, comes last and without a date.
    ids = sorted(names, key=lambda commit: order.get(commit, len(order)))
    with _hub_errors(repo_id), ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda commit: _card_on_hub(api, repo_id, commit), ids))
    return [
        Revision(tuple(names[commit]), commit, dates.get(commit), each)
        for commit, each in zip(ids, numbers, strict=True)
    ]


def folder_checkpoints(folder: str | Path) -> list[Checkpoint]:
    """The checkpoints of an output folder by step, and last the model that its run ended with, if it has.

    Raises:
        FileNotFoundError: there is neither.
    """
    folder = Path(folder)
    named = [(_CHECKPOINT.fullmatch(path.name), path) for path in folder.glob("checkpoint-*")]
    found = [path for _, path in sorted((int(name[1]), path) for name, path in named if name)]
    states = {path: _trainer_state(path) for path in found}
    best = next((state["best_global_step"] for path in reversed(found) if (state := states[path])), None)
    checkpoints = [_checkpoint(path, best, is_whole=states[path] is not None) for path in found]
    if (folder / "config.json").is_file():
        checkpoints.append(_checkpoint(folder, best, is_whole=True))
    if not checkpoints:
        raise FileNotFoundError(
            f"{folder} holds no model and no checkpoint-<step>: give the output_dir of a run, or a Hub id as USER/NAME"
        )
    return checkpoints


def hub_models(author: str | None = None, *, token: str | bool | None = None) -> list[HubModel]:
    """The models on the Hub that are tagged with this library, of one author or of all, newest first.

    Raises:
        FileNotFoundError: the Hub cannot be asked.
    """
    with _hub_errors(author or "its models"):
        found = HfApi(token=token).list_models(author=author, filter=LIBRARY, sort="last_modified", full=True)
        return [HubModel(each.id, each.last_modified, each.downloads or 0, each.likes or 0) for each in found]


def _card_on_hub(api: HfApi, repo_id: str, commit: str) -> CardNumbers:
    try:
        path = api.hf_hub_download(repo_id, "README.md", revision=commit)
    except EntryNotFoundError:
        return CardNumbers()
    return _numbers(Path(path), f"{repo_id}, commit {commit[:8]}")


def _checkpoint(folder: Path, best: int | None, *, is_whole: bool) -> Checkpoint:
    card = folder / "README.md"
    numbers = _numbers(card, str(card)) if card.is_file() else CardNumbers()
    num_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    is_best = best is not None and numbers.step == best
    return Checkpoint(folder, numbers, num_bytes, is_best, is_whole)


def _numbers(card: Path, where: str) -> CardNumbers:
    try:
        return read_card(card.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _trainer_state(checkpoint: Path) -> dict[str, Any] | None:
    """What the Trainer wrote last into a checkpoint; None where it did not come to that."""
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(
            f"no model {what!r}: it is no folder here, and no repository on the Hub that you may read. Check the name "
            "with `qtr models USER/`; for a private one, log in with `hf auth login` or set HF_TOKEN."
        ) from error
    except (httpx.HTTPError, ConnectionError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"the Hub cannot be asked for {what!r}: {first_line}. Without a network, give a local folder."
        ) from error
