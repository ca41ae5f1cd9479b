"""Recall of every evaluation as one growing table on screen, as a history file, and as a picture."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwen_term_retrieval.evaluation.training_curves import draw_training_curves
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.trainer_callbacks.best_evaluation import is_best

logger = logging.getLogger(__name__)

HISTORY_NAME = "recall_history.jsonl"
PICTURE_NAME = "recall_history.png"
_RECALL = re.compile(r"(?P<prefix>.+)_recall@(?P<k>\d+)(?P<group>_unseen)?$")
_ROWS_PER_HEADER = 20


class RecallReporterCallback(TrainerCallback):
    """Print a row of recalls after each evaluation, add all its metrics to `recall_history.jsonl`, and draw them.

    A star marks the best so far, see `is_best`. The file lies in `output_dir`, a JSON object a line:
    `{"step": …, "epoch": …, "eval_recall@10": …}`. A resumed run goes on in it from its checkpoint's step. Beside it
    lies `recall_history.png`: recall and MRR, training loss and learning rate, the best checkpoint marked. It takes
    matplotlib (extra `report`). Files appear whole. Only the main process prints, draws and writes.

    Example:
        >>> trainer = TermRetrievalTrainer(..., callbacks=[RecallReporterCallback()])  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._columns: list[str] | None = None
        self._rows_printed = 0
        self._drawn: str | None = None
        self._told = False
        self._training = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        path = _history_path(args, state)
        if path.is_file():
            kept = [record for record in read_history(path) if record["step"] <= state.global_step > 0]
            _write_history(path, kept)
        self._drawn, self._training = None, True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        found = [name for name in metrics or {} if _RECALL.match(name)]
        if metrics is None or not found or not state.is_world_process_zero:
            return
        path = _history_path(args, state)
        path.parent.mkdir(parents=True, exist_ok=True)
        before = read_history(path) if path.is_file() else []
        _write_history(path, [*before, {"step": state.global_step, "epoch": state.epoch, **metrics}])
        best = is_best(args, state, metrics)
        self._print(metrics, found, state, best)
        if self._training:
            self._drawn = found[0].rpartition("_recall@")[0]
            self._draw(args, state, state.global_step if best else state.best_global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Once more: the last losses, and a best checkpoint that was chosen after its evaluation was drawn.
        self._draw(args, state, state.best_global_step)
        self._training = False

    def _draw(self, args: TrainingArguments, state: TrainerState, best_step: int | None) -> None:
        if self._drawn is None:
            return
        path = _history_path(args, state).with_name(PICTURE_NAME)
        try:
            draw_training_curves(state.log_history, path, prefix=self._drawn, best_step=best_step)
        except ImportError:
            if not self._told:
                logger.warning("no %s: it takes matplotlib, pip install 'qwen_term_retrieval[report]'", PICTURE_NAME)
            self._told = True

    def _print(self, metrics: dict[str, float], names: list[str], state: TrainerState, best: bool) -> None:
        if names != self._columns or self._rows_printed % _ROWS_PER_HEADER == 0:
            self._columns, self._rows_printed = names, 0
            tqdm.write("    step   epoch " + "".join(f"{_label(name):>13}" for name in names))
        row = f"{'*' if best else ' '}{state.global_step:>7} {state.epoch or 0.0:>7.2f} "
        tqdm.write(row + "".join(f"{metrics[name]:>13.4f}" for name in names))
        self._rows_printed += 1


def read_history(path: str | Path) -> list[dict[str, float]]:
    """The records of a `recall_history.jsonl`, in order."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def _write_history(path: Path, records: list[dict[str, Any]]) -> None:
    with atomic_file(path, durable=False) as file:
        file.write("".join(json.dumps(record) + "\n" for record in records).encode())


def _history_path(args: TrainingArguments, state: TrainerState) -> Path:
    """Where the history of a run is written; that of a trial of a hyperparameter search in the trial's folder."""
    return Path(str(args.output_dir), state.trial_name or "") / HISTORY_NAME


def _label(name: str) -> str:
    found = _RECALL.match(name)
    if found is None:
        return name
    prefix = "" if found["prefix"] == "eval" else f"{found['prefix']} "
    return f"{prefix}R@{found['k']}{' unseen' if found['group'] else ''}"
