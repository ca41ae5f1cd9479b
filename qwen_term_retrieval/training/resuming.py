"""A run goes on over the data that it began with, or not at all.

Which clip a step takes is a matter of row numbers, and which term was mined, of its place in the glossary: over other
rows a resumed run would train, without a word, on whatever lies there. So each checkpoint says what it was trained on:
the rows of the training split in their order, by key, duration and labels, and the glossary. Not where they lie: packs
move and take other names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import xxhash
from transformers import Trainer

from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.text.glossary import Glossary

logger = logging.getLogger(__name__)

FILE_NAME = "training_data.json"
_COLUMNS = ("key", "duration", "language", "text", "terms", "term_starts", "term_ends")


def data_identity(rows: datasets.Dataset, glossary: Glossary) -> dict[str, str]:
    """What tells training data from other data: the clips in their order with their labels, and the glossary in its."""
    of_clips = xxhash.xxh3_64()
    columns = [name for name in _COLUMNS if name in rows.column_names]
    for batch in rows.select_columns(columns).with_format("arrow").iter(10_000):
        of_clips.update(repr([batch[name].to_pylist() for name in columns]).encode())
    of_terms = xxhash.xxh3_64_hexdigest(repr(list(glossary)).encode())
    return {
        "clips": f"{len(rows)} with digest {of_clips.hexdigest()}",
        "terms": f"{len(glossary)} with digest {of_terms}",
    }


def changes(kept: Mapping[str, str], now: Mapping[str, str]) -> str:
    """In what two identities differ; empty where they do not."""
    names = [name for name in sorted({*kept, *now}) if kept.get(name) != now.get(name)]
    return "; ".join(f"{name}: {kept.get(name)} then, {now.get(name)} now" for name in names)


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


class ResumableTrainer(Trainer):
    """A Trainer that goes on from a checkpoint only over the data that the checkpoint was trained on."""

    data_identity: dict[str, str] | None = None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.is_in_train and self.args.should_save and self.data_identity and output_dir is not None:
            with atomic_file(Path(output_dir, FILE_NAME)) as file:
                file.write(json.dumps(self.data_identity, indent=2).encode())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights.

        Raises:
            ValueError: the checkpoint is of other data, or of a model alone.
        """
        missing = [
            name for name in ("optimizer.pt", "scheduler.pt") if not Path(resume_from_checkpoint, name).is_file()
        ]
        if missing:
            raise ValueError(
                f"{resume_from_checkpoint} has no {' and no '.join(missing)}, so it cannot be resumed from: it was "
                "saved with save_only_model, or not copied whole. Train its model on with --model and another "
                "--output_dir"
            )
        if self.data_identity:
            check_same_data(resume_from_checkpoint, self.data_identity)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
