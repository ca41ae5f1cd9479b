"""A run goes on from its newest whole checkpoint, over the data that it began with, or not at all.

Which clip a step takes is a matter of row numbers: over other rows a resumed run would train, without a word, on
whatever lies there. So each checkpoint says what it was trained on, as a trainer puts it into words: of the rows their
number and a digest, in their order, whatever folder they lie in. Packs move and take other names.

Nothing here knows what is trained: any `Trainer` keeps and checks its identity by these functions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import xxhash

from qwen_term_retrieval.storage.atomic import atomic_file

logger = logging.getLogger(__name__)

FILE_NAME = "training_data.json"


def rows_identity(rows: datasets.Dataset, columns: Sequence[str]) -> str:
    """What tells rows from other rows: how many they are, and a digest of these columns, those that are there."""
    digest = xxhash.xxh3_64()
    there = [name for name in columns if name in rows.column_names]
    for batch in rows.select_columns(there).with_format("arrow").iter(10_000):
        digest.update(repr([batch[name].to_pylist() for name in there]).encode())
    return f"{len(rows)} with digest {digest.hexdigest()}"


def changes(kept: Mapping[str, str], now: Mapping[str, str]) -> str:
    """In what two identities differ; empty where they do not."""
    names = [name for name in sorted({*kept, *now}) if kept.get(name) != now.get(name)]
    return "; ".join(f"{name}: {kept.get(name)} then, {now.get(name)} now" for name in names)


def keep_identity(folder: str | Path, identity: Mapping[str, str]) -> None:
    """Write into a checkpoint what it was trained on."""
    with atomic_file(Path(folder, FILE_NAME)) as file:
        file.write(json.dumps(dict(identity), indent=2).encode())


def check_same_data(checkpoint: str | Path, identity: Mapping[str, str]) -> None:
    """Refuse to go on from a checkpoint over other data than it was trained on.

    Raises:
        ValueError: says what changed, and the remedies.
    """
    file = Path(checkpoint, FILE_NAME)
    if not file.is_file():
        logger.warning(
            "%s does not say what it was trained on: nobody can tell whether this data is the same", checkpoint
        )
        return
    if changed := changes(json.loads(file.read_text(encoding="utf-8")), identity):
        raise ValueError(
            f"{checkpoint} was trained on other data ({changed}). Resume with the rows and the glossary of the "
            "run that was stopped; or train its model on with --model and another --output_dir; or start anew with "
            "--overwrite"
        )


def check_resumable(checkpoint: str | Path) -> None:
    """Refuse a checkpoint of a model alone.

    Raises:
        ValueError: says which files are missing, and the remedy.
    """
    missing = [name for name in ("optimizer.pt", "scheduler.pt") if not Path(checkpoint, name).is_file()]
    if missing:
        raise ValueError(
            f"{checkpoint} has no {' and no '.join(missing)}, so it cannot be resumed from: it was "
            "saved with save_only_model, or not copied whole. Train its model on with --model and another "
            "--output_dir"
        )


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: the Trainer writes `trainer_state.json` last.

    `last-checkpoint` is one too: what `--hub_strategy checkpoint` keeps on the Hub, downloaded into `folder`.
    """
    steps = {}
    for path in [*folder.glob("checkpoint-*[0-9]"), *folder.glob("last-checkpoint")]:
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            steps[path] = state["global_step"]
        except (FileNotFoundError, json.JSONDecodeError):
            logger.warning("%s was not written to its end and is left aside", path)
    return str(max(steps, key=lambda path: steps[path])) if steps else None
