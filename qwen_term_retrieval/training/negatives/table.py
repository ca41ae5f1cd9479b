"""The hard negatives of a run on disk: one file a mining, read by the collator.

Shapes: C clips, K negatives.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen_term_retrieval.runs.checkpoints.resuming import changes
from qwen_term_retrieval.storage.atomic import atomic_file


class HardNegativeTable:
    """Which terms each training clip is compared with: rows of the training glossary, one memory-mapped file a mining.

    A step uses the last mining that was surely over when its batch was built. Which one that is follows from the step
    alone: batches are built ahead, by a number of steps that the loader's settings bound, and a resumed run must
    compare with the same terms.

    Args:
        folder: of the files, `step_00000500.npy`: int32 (C, K), -1 where a clip has fewer.
        refresh_steps: optimizer steps from one mining to the next.
        lag: steps by which batches are built ahead, at most.
        meaning: what the numbers in the files stand for, see `data_identity`; kept beside them.
    """

    def __init__(self, folder: Path, refresh_steps: int, lag: int, meaning: Mapping[str, str]):
        self.folder = folder
        self.refresh_steps = refresh_steps
        self.lag = lag
        self.meaning = dict(meaning)

    def begin(self, folder: Path, refresh_steps: int) -> None:
        """Keep the minings of another run, or of this one from now on."""
        self.folder = folder
        self.refresh_steps = refresh_steps

    def mined_at(self, step: int) -> int:
        """The step before which the negatives of `step` were mined."""
        return max(0, step - self.lag) // self.refresh_steps * self.refresh_steps

    def __call__(self, clip: int, step: int) -> list[int]:
        """Rows of the glossary that `clip` is compared with in `step`.

        Raises:
            FileNotFoundError: that mining is not there.
        """
        return _open_table(self.folder, self.mined_at(step))[clip].tolist()

    def needed_from(self, step: int) -> list[int]:
        """The minings that `step` and those after it ask for, as far as they are over before `step`."""
        return list(range(self.mined_at(step), step + 1, self.refresh_steps))

    def is_mined(self, step: int) -> bool:
        """Whether the mining just before `step` is there, and what its numbers stand for."""
        return self._path(step).is_file() and self._meaning_path.is_file()

    def check_meaning(self) -> None:
        """See that what was mined earlier, if anything, is of this run's clips and terms.

        Raises:
            ValueError: it is not; says what changed, and the remedy.
        """
        if not self._meaning_path.is_file():
            return
        if changed := changes(json.loads(self._meaning_path.read_text(encoding="utf-8")), self.meaning):
            raise ValueError(
                f"{self.folder}: its hard negatives were mined for other data ({changed}). Resume with the "
                "rows and the glossary of the run that was stopped, or start anew with --overwrite."
            )

    def write(self, step: int, table_CK: NDArray[np.int32]) -> None:
        """Keep what was mined before `step`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._meaning_path) as file:
            file.write(json.dumps(self.meaning, indent=2).encode())
        with atomic_file(self._path(step)) as file:
            np.save(file, table_CK)

    def reopen(self) -> None:
        """Read what was written since, by this process or another."""
        _open_table.cache_clear()

    def _path(self, step: int) -> Path:
        return _table_path(self.folder, step)

    @property
    def _meaning_path(self) -> Path:
        return self.folder / "meaning.json"


def _table_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.npy"


@functools.lru_cache(maxsize=2)
def _open_table(folder: Path, step: int) -> NDArray[np.int32]:
    """By folder and step, and as a plain array: every clip of every batch asks, and paths and memmaps are slow."""
    path = _table_path(folder, step)
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: no such mining of hard negatives. Resume with the hard_neg_refresh_steps and the output_dir of "
            "the run that was stopped, or start anew with --overwrite."
        ) from error
