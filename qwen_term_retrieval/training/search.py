"""`trainer.hyperparameter_search(n_trials=20)`: runs of one trainer that do not see each other.

The Trainer of transformers 5.23 gives each trial a new model and its settings, and keeps all else of the trial before:
settings that only some trials have, and a trial's last evaluation for its result, not its best. Here every trial starts
as a run of its own would, is checked as one, and is worth its best evaluation. What callbacks count begins anew with
each run, see their `on_train_begin`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer

from qwen_term_retrieval.distributed import world_size
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.runs.memory import NotEnoughMemoryError
from qwen_term_retrieval.trainer_callbacks import NonFiniteStepsError
from qwen_term_retrieval.training.arguments import TermRetrievalArguments

SHOWN_METRICS = ("eval_recall@1", "eval_recall@10", "eval_mrr")
# Less than one pair of a million.
_MRR_WEIGHT = 1e-6


def default_hp_space(args: TermRetrievalArguments) -> Callable[[Any], dict[str, Any]]:
    """What is worth trying around the settings of a run: a function of an optuna trial.

    Learning rate, weight decay and temperature on a logarithmic scale, batches of its own size and smaller, and the
    weight of hard negatives where the run has them.
    """
    batch_size = args.train_batch_size

    def space(trial: Any) -> dict[str, Any]:
        settings = {
            "learning_rate": trial.suggest_float(
                "learning_rate", args.learning_rate / 5, args.learning_rate * 5, log=True
            ),
            "weight_decay": trial.suggest_float("weight_decay", 1e-3, 0.3, log=True),
            "temperature": trial.suggest_float("temperature", 0.03, 0.2, log=True),
        }
        if args.max_batch_seconds is None:
            settings["per_device_train_batch_size"] = trial.suggest_categorical(
                "per_device_train_batch_size", sorted({max(1, batch_size // share) for share in (1, 2, 4)})
            )
        if args.enable_hard_neg:
            settings["hard_neg_weight"] = trial.suggest_float("hard_neg_weight", 0.05, 1.0, log=True)
        return settings

    return space


def recall_then_mrr(metrics: Mapping[str, float]) -> float:
    """Recall@10, which saturates first; of equal ones, the better ranked."""
    return metrics["eval_recall@10"] + _MRR_WEIGHT * metrics["eval_mrr"]


class Trials:
    """The trials of a search, each with the settings of the run and its own.

    Args:
        trainer: whose `args` they change.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._args_of_the_run: dict[str, Any] | None = None
        self._scores: tuple[float, ...] = ()

    @property
    def are_running(self) -> bool:
        return self._args_of_the_run is not None

    @contextmanager
    def of_this_run(self) -> Iterator[None]:
        """Search inside of this; the settings of the run come back at its end."""
        trainer = self.trainer
        self._args_of_the_run = dict(vars(trainer.args))
        try:
            yield
        finally:
            self.forget_settings()
            self._args_of_the_run = None
            trainer._train_batch_size = trainer.args.train_batch_size
            trainer.hp_search_backend = None

    def forget_settings(self) -> None:
        """Put the settings of the run in the place of those of the trial before."""
        if self._args_of_the_run is not None:
            vars(self.trainer.args).update(self._args_of_the_run)
            self._scores = ()

    def best_so_far(
        self, score: Callable[[dict[str, float]], float], direction: str, backend: str
    ) -> Callable[[dict[str, float]], float]:
        """What a trial is worth: the best of its evaluations until now; optuna is told the metrics of that one."""
        best = max if direction == "maximize" else min

        def of(metrics: dict[str, float]) -> float:
            self._scores = (*self._scores, score(metrics))
            trial: Any = self.trainer._trial
            if self._scores[-1] == best(self._scores) and backend == "optuna":
                for name in SHOWN_METRICS:
                    trial.set_user_attr(name, metrics.get(name))
            return best(self._scores)

        return of


def check_shares_frames(before: TermRetrievalModel, model: TermRetrievalModel) -> None:
    """Raise a ValueError where a trial's model hears otherwise than the one whose frames were computed."""
    for name in ("audio_tower", "audio_layers", "lora"):
        if getattr(before.config, name) != getattr(model.config, name):
            raise ValueError(
                f"model_init gave a model whose {name} is {getattr(model.config, name)!r}, the one before had "
                f"{getattr(before.config, name)!r}: trials share the frames of the audio tower. Search each alone."
            )


def kwargs_of_study(given: Mapping[str, Any]) -> dict[str, Any]:
    """For optuna: a trial that stops on losses that are not finite, or does not fit, fails, and the search goes on."""
    if world_size() == 1:
        return {"catch": (NonFiniteStepsError, NotEnoughMemoryError, torch.OutOfMemoryError), **given}
    import optuna

    # Only rank 0 asks the pruner, and would leave the others waiting.
    return {**given, "pruner": optuna.pruners.NopPruner()}
