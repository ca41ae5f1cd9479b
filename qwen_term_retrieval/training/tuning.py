"""Which settings of a recipe work best on its data: what `scripts/tune.py` calls.

Trials are kept in a journal beside them, so that a search that was killed goes on with `--resume`: the trial that it
died in is run again. The best one becomes a recipe.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from qwen_term_retrieval.evaluation.report import markdown_table
from qwen_term_retrieval.runs.starting import (
    configure_logging,
    heading,
    prepare_output_dir,
    show_loss_behind_the_bar,
)
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.trainer_callbacks import RecallReporterCallback, ThroughputCallback
from qwen_term_retrieval.training.arguments import DataArguments, ModelArguments, TermRetrievalArguments
from qwen_term_retrieval.training.run import build_model, checked_rows
from qwen_term_retrieval.training.search import SHOWN_METRICS
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

JOURNAL = "trials.journal"
BEST_RECIPE = "best.yaml"
# How a run is started, and a secret.
_NOT_IN_RECIPES = ("resume", "overwrite", "hub_token")


def tune(
    model_args: ModelArguments, data_args: DataArguments, args: TermRetrievalArguments, num_trials: int
) -> Path | None:
    """Search for better settings, in `<output_dir>-tuning`.

    Prints a table of the trials and writes the best as a recipe whose runs go into `<output_dir>-tuned`.

    Returns:
        The recipe; None if no trial came to its end.

    Raises:
        ValueError: there is no `eval_split` to judge by, or no number of trials.
        RuntimeError: more than one process.
        FileExistsError: an earlier search is there, and neither `resume` nor `overwrite` was given.
    """
    if not data_args.eval_split:
        raise ValueError("a search needs an eval_split to judge its trials by")
    if num_trials < 1:
        raise ValueError(f"the number of trials must be at least 1, not {num_trials}")
    if args.world_size > 1:
        raise RuntimeError("a search runs in one process: python scripts/tune.py")
    settings = {**settings_of(model_args, data_args, args), "output_dir": f"{args.output_dir}-tuned"}
    configure_logging(args)
    args.record(model_args, data_args)
    args.output_dir, args.push_to_hub = f"{args.output_dir}-tuning", False
    prepare_output_dir(args)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    journal = Path(args.output_dir, JOURNAL)
    study = open_study(journal, args.seed)
    num_left = num_trials - sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials)
    if num_left > 0:
        run_trials(study, journal, model_args, data_args, args, num_left)
    print(trials_table(study.trials))
    if not any(trial.state.name == "COMPLETE" for trial in study.trials):
        logger.warning("no trial came to its end: there is no best one")
        return None
    if "per_device_train_batch_size" in study.best_params:
        settings.pop("contrastive_batch_size", None)
    recipe = Path(args.output_dir, BEST_RECIPE)
    comment = f"# Trial {study.best_trial.number} of {len(study.trials)}: the best by Recall@10 and MRR.\n"
    recipe.write_text(comment + yaml.safe_dump(settings | study.best_params, sort_keys=False), encoding="utf-8")
    heading("best", f"trial {study.best_trial.number}; train with it by  python scripts/train.py --recipe {recipe}")
    return recipe


def open_study(journal: Path, seed: int) -> optuna.Study:
    """The study of a journal, new or gone on with; a trial that a killed process left is queued again."""
    import optuna

    study = optuna.create_study(
        storage=_storage(journal), study_name="tuning", direction="maximize", load_if_exists=True
    )
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        logger.warning("trial %d was killed and is run again", trial.number)
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _storage(journal: Path) -> optuna.storages.BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(journal)))


def run_trials(
    study: optuna.Study,
    journal: Path,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TermRetrievalArguments,
    num_trials: int,
) -> None:
    rows = checked_rows(data_args)
    heading("tune", f"{num_trials} trials over {len(rows[data_args.train_split])} clips; into {args.output_dir}")
    trainer = TermRetrievalTrainer(
        None,
        args,
        train_dataset=rows[data_args.train_split],
        eval_dataset=rows[data_args.eval_split],
        glossary=Glossary.from_file(data_args.glossary) if data_args.glossary else None,
        callbacks=[RecallReporterCallback(), ThroughputCallback()],
        model_init=lambda: build_model(model_args, args),
    )
    show_loss_behind_the_bar(trainer)
    trainer.hyperparameter_search(
        n_trials=num_trials,
        storage=_storage(journal),
        study_name=study.study_name,
        load_if_exists=True,
        sampler=study.sampler,
    )


def settings_of(*arguments: Any) -> dict[str, Any]:
    """What differs from the defaults, as a recipe has it."""
    settings = {}
    for given in arguments:
        default = type(given)()
        for field in dataclasses.fields(given):
            value = getattr(given, field.name)
            if field.init and field.name not in _NOT_IN_RECIPES and value != getattr(default, field.name):
                settings[field.name] = value.value if isinstance(value, enum.Enum) else value
    return settings


def trials_table(trials: Sequence[optuna.trial.FrozenTrial]) -> str:
    """A row a trial, the best first; those that did not come to their end last."""
    ended = [trial for trial in trials if trial.state.is_finished()]
    names = list(dict.fromkeys(name for trial in ended for name in trial.params))
    rows = []
    for trial in sorted(ended, key=lambda trial: (trial.state.name != "COMPLETE", -(trial.value or 0.0))):
        values = [trial.user_attrs.get(name) for name in SHOWN_METRICS] + [trial.params.get(name) for name in names]
        rows.append([trial.number, trial.state.name.lower(), *values])
    header = ["trial", "state", *(name.removeprefix("eval_") for name in SHOWN_METRICS), *names]
    return markdown_table(header, rows, decimals=".4g")
