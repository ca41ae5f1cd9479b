"""`trainer.hyperparameter_search(n_trials=20)`: runs of one trainer that do not see each other.

The Trainer of transformers 5.23 gives each trial a new model and its settings, and keeps all else of the trial before:
the counts of its callbacks, settings that only some trials have, the folder of hard negatives. It takes a trial's last
evaluation for its result, not its best. Here every trial starts as a run of its own would, is checked as one, and is
worth its best evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_utils import BestRun

from qwen_term_retrieval.distributed import world_size
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.trainer_callbacks import (
    HardNegativeRefreshCallback,
    NonFiniteGuardCallback,
    NonFiniteStepsError,
)
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.checks.memory import NotEnoughMemoryError

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


class SearchableTrainer(Trainer):
    """A Trainer of a `TermRetrievalModel` whose `hyperparameter_search` compares whole runs.

    It needs a `model_init` in place of a model.
    """

    args: TermRetrievalArguments
    retrieval_model: TermRetrievalModel
    _first_model: TermRetrievalModel | None = None
    _args_of_the_run: dict[str, Any] | None = None
    _scores: tuple[float, ...] = ()

    def hyperparameter_search(  # type: ignore[override]
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str = "maximize",
        backend: str = "optuna",
        hp_name: Callable[[Any], str] | None = None,
        **kwargs: Any,
    ) -> BestRun:
        """Train `n_trials` times with different settings, each in a folder `run-<number>` of `output_dir`.

        A trial that stops on losses that are not finite, or that does not fit into memory, counts as failed, and the
        search goes on; one that optuna prunes counts as pruned.

        Args:
            hp_space: an optuna trial -> settings by their names in `TermRetrievalArguments`; `default_hp_space`.
            compute_objective: metrics of an evaluation -> what is optimised; Recall@10, then MRR. A trial is worth its
                best evaluation.
            n_trials: runs.
            direction: "maximize" or "minimize".
            backend: "optuna"; with the others of transformers the trials are as it makes them.
            hp_name: a trial -> its folder.
            kwargs: for `optuna.create_study` and `Study.optimize`, such as `pruner`, `storage`, `timeout`.

        Raises:
            RuntimeError: the trainer was given a model, not a `model_init`.
        """
        if backend == "optuna":
            kwargs = _kwargs_of_study(kwargs)
        score = compute_objective or recall_then_mrr
        best = max if direction == "maximize" else min

        def best_so_far(metrics: dict[str, float]) -> float:
            self._scores = (*self._scores, score(metrics))
            trial: Any = self._trial
            if self._scores[-1] == best(self._scores) and backend == "optuna":
                for name in SHOWN_METRICS:
                    trial.set_user_attr(name, metrics.get(name))
            return best(self._scores)

        self._args_of_the_run = dict(vars(self.args))
        try:
            found: Any = super().hyperparameter_search(
                hp_space or default_hp_space(self.args),
                best_so_far,
                n_trials,
                direction,
                backend,
                hp_name or (lambda trial: f"run-{trial.number}"),
                **kwargs,
            )
            return found
        finally:
            vars(self.args).update(self._args_of_the_run)
            self._args_of_the_run = None
            self._train_batch_size = self.args.train_batch_size
            self.hp_search_backend = None

    def call_model_init(self, trial: Any = None) -> TermRetrievalModel:
        """The model of a trial. The first is the one that the clips were prepared with."""
        model: Any = self._first_model or super().call_model_init(trial)
        self._first_model = None
        if self._args_of_the_run is not None:  # those of the trial before are still in place
            vars(self.args).update(self._args_of_the_run)
        self.use_model(model)
        return model

    def use_model(self, model: TermRetrievalModel) -> None:
        """Train this model from now on.

        Raises:
            ValueError: frames of a frozen tower were computed by another than this model's.
        """
        before = getattr(self, "retrieval_model", model)
        for name in ("audio_tower", "audio_layers", "lora"):
            if getattr(before.config, name) != getattr(model.config, name):
                raise ValueError(
                    f"model_init gave a model whose {name} is {getattr(model.config, name)!r}, the one before had "
                    f"{getattr(before.config, name)!r}: trials share the frames of the audio tower. Search each alone."
                )
        self.retrieval_model = model
        self._start_logits()

    @torch.no_grad()
    def _start_logits(self) -> None:
        """Temperature, and the bias that one loss has: where the settings let them start, or as the model has them."""
        args, model = self.args, self.retrieval_model
        if args.temperature is not None:
            model.set_temperature(args.temperature)
        if args.loss == "sigmoid":
            model.add_logit_bias()
            if args.sigmoid_bias is not None:
                model.config.logit_bias = args.sigmoid_bias
                model.logit_bias.fill_(args.sigmoid_bias)
        if model.config.logit_bias is not None:
            # What the loss does not use must not wait for a gradient under DDP.
            model.logit_bias.requires_grad_(args.loss == "sigmoid")

    def _hp_search_setup(self, trial: Any) -> None:
        """Start a trial as a run of its own would start."""
        if trial is None or self._args_of_the_run is None:
            super()._hp_search_setup(trial)
            return
        vars(self.args).update(self._args_of_the_run)
        self._scores = ()
        super()._hp_search_setup(trial)
        if "per_device_train_batch_size" in trial.params:
            self.args.contrastive_batch_size = None
        self.args.check_objective()
        self._start_logits()  # the model was made before the trial's settings were known
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience_counter = 0
            elif isinstance(callback, NonFiniteGuardCallback):
                callback.nonfinite_steps = 0
            elif isinstance(callback, HardNegativeRefreshCallback):
                callback.table.folder = Path(self._get_output_dir(trial), "hard_negatives")
                callback.table.refresh_steps = self.args.hard_neg_refresh_steps


def _kwargs_of_study(given: Mapping[str, Any]) -> dict[str, Any]:
    if world_size() == 1:
        return {"catch": (NonFiniteStepsError, NotEnoughMemoryError, torch.OutOfMemoryError), **given}
    import optuna

    # Only rank 0 asks the pruner, and would leave the others waiting.
    return {**given, "pruner": optuna.pruners.NopPruner()}
