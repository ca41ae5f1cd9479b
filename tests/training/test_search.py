"""Real short trials on a part of the demo corpus: independent of each other, and the best of them as a recipe."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from transformers import EarlyStoppingCallback

from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.runs.recipes import parse_recipe
from qwen_term_retrieval.trainer_callbacks import NonFiniteGuardCallback, RecallReporterCallback
from qwen_term_retrieval.training.arguments import TERM_RETRIEVAL, TermRetrievalArguments
from qwen_term_retrieval.training.search import default_hp_space, recall_then_mrr
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer
from qwen_term_retrieval.training.tuning import open_study, tune

RECIPES = Path(__file__).parents[2] / "configs" / "recipes"
QUICK = {
    "use_cpu": True, "num_train_epochs": 3, "per_device_train_batch_size": 16, "learning_rate": 3e-3, "patience": 1,
    "disable_tqdm": True, "enable_hard_neg": True, "hard_neg_k": 2, "hard_neg_refresh_steps": 2, "logging_steps": 1,
}  # fmt: skip


def small_model():
    return TermRetrievalModel(
        TermRetrievalConfig(
            audio_tower="openai/whisper-tiny.en",
            text_tower="phonemes:characters",
            text_tower_config={"hidden_size": 32},
            embedding_dim=32,
        )
    )


def make_trainer(folder, rows, callbacks=(), **settings):
    args = TermRetrievalArguments(output_dir=str(folder), **{**QUICK, **settings})
    spoken = rows["train"].filter(lambda terms: len(terms) == 1, input_columns="terms")
    return TermRetrievalTrainer(
        None, args, spoken.select(range(48)), rows["validation"].select(range(24)), model_init=small_model,
        callbacks=list(callbacks),
    )  # fmt: skip


def test_mrr_decides_only_between_equal_recalls():
    ranked = {"eval_recall@10": 0.5, "eval_mrr": 0.4}
    assert recall_then_mrr(ranked) > recall_then_mrr(ranked | {"eval_mrr": 0.3})
    assert recall_then_mrr(ranked | {"eval_recall@10": 0.501, "eval_mrr": 0.0}) > recall_then_mrr(ranked)


def test_a_model_or_a_way_to_make_one_is_needed(tmp_path, demo_rows):
    with pytest.raises(ValueError, match="give a model, or a model_init"):
        TermRetrievalTrainer(None, TermRetrievalArguments(output_dir=str(tmp_path)), demo_rows["train"])


@pytest.mark.slow
def test_three_trials_of_the_demo_each_in_a_folder_of_its_own(tmp_path, demo_rows):
    trainer = make_trainer(tmp_path, demo_rows, [RecallReporterCallback()])
    before = dict(vars(trainer.args))
    storage = optuna.storages.InMemoryStorage()
    best = trainer.hyperparameter_search(
        backend="optuna", n_trials=3, direction="maximize", storage=storage, study_name="demo",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip
    study = optuna.load_study(study_name="demo", storage=storage)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert set(best.hyperparameters) == {
        "learning_rate", "weight_decay", "temperature", "hard_neg_weight", "per_device_train_batch_size",
    }  # fmt: skip
    for trial in study.trials:
        folder = tmp_path / f"run-{trial.number}"
        history = [json.loads(line) for line in (folder / "recall_history.jsonl").read_text().splitlines()]
        # A trial is worth its best evaluation, and a patience of 1 begins anew in each.
        assert trial.value == max(map(recall_then_mrr, history))
        assert len(history) >= 2
        assert (folder / "hard_negatives" / "step_00000000.npy").is_file()
        assert list(folder.glob("checkpoint-*"))
    assert not (tmp_path / "hard_negatives").exists()
    assert best.objective == max(trial.value for trial in study.trials)
    assert vars(trainer.args) == before


@pytest.mark.slow
def test_the_settings_of_a_trial_reach_the_model_and_the_loss(tmp_path, demo_rows):
    trainer = make_trainer(tmp_path, demo_rows, max_steps=1, eval_strategy="no", save_strategy="no", patience=0)
    seen = []
    plain = trainer.training_step

    def step(model, inputs, num_items_in_batch=None):
        seen.append((model.logit_scale.item(), trainer.args.objective().hard_neg_weight, len(inputs["term_queries"])))
        return plain(model, inputs, num_items_in_batch)

    trainer.training_step = step
    sigmoid = {"loss": "sigmoid", "sigmoid_bias": -2.0}
    tried = iter([{"temperature": 0.05, "hard_neg_weight": 0.9}, {"temperature": 0.2}, sigmoid])

    def space(trial):
        return {
            name: trial.suggest_categorical(name, [value])
            if name == "loss"
            else trial.suggest_float(name, value, value)
            for name, value in next(tried).items()
        }

    trainer.hyperparameter_search(space, n_trials=3)
    (scale, weight, _), (later_scale, later_weight, _), (last_scale, *_) = seen
    assert (scale, weight) == (pytest.approx(math.log(20)), 0.9)
    # What only the first trial set is the run's own again in the second.
    assert (later_scale, later_weight) == (pytest.approx(math.log(5)), trainer.args.hard_neg_weight)
    assert last_scale == pytest.approx(math.log(1 / 0.07))
    # A trial of another loss has the parameter that its loss needs.
    assert trainer.retrieval_model.config.logit_bias == -2.0
    assert trainer.retrieval_model.logit_bias.requires_grad


@pytest.mark.slow
def test_a_trial_that_is_pruned_or_diverges_leaves_nothing_behind(tmp_path, demo_rows):
    trainer = make_trainer(tmp_path, demo_rows, max_nonfinite_steps=0, patience=0)
    plain = trainer._loss_of
    trainer._loss_of = lambda *batch: plain(*batch) * (torch.nan if trainer._trial.number == 1 else 1)
    storage = optuna.storages.InMemoryStorage()

    class PruneFirst(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 0

    trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 3e-3, 3e-3)},
        n_trials=3, storage=storage, study_name="demo", pruner=PruneFirst(),
    )  # fmt: skip
    study = optuna.load_study(study_name="demo", storage=storage)
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "FAIL", "COMPLETE"]

    alone = make_trainer(tmp_path / "alone", demo_rows, patience=0)
    alone.train()
    scores = [recall_then_mrr(entry) for entry in alone.state.log_history if "eval_mrr" in entry]
    assert study.best_value == max(scores)
    assert "nonfinite_steps" in trainer.state.log_history[0]
    assert {callback.nonfinite_steps for callback in trainer.callback_handler.callbacks
            if isinstance(callback, NonFiniteGuardCallback)} == {0}  # fmt: skip


@pytest.mark.slow
def test_patience_of_the_users_own_begins_anew_in_each_trial(tmp_path, demo_rows):
    trainer = make_trainer(tmp_path, demo_rows, [EarlyStoppingCallback(1)], learning_rate=0.0, patience=0)
    trainer.hyperparameter_search(
        lambda trial: {"weight_decay": trial.suggest_float("weight_decay", 0.1, 0.1)}, n_trials=2
    )
    steps = [json.loads((folder / "trainer_state.json").read_text())["global_step"] for folder in
             sorted(tmp_path.glob("run-*/checkpoint-*"))]  # fmt: skip
    assert {folder.name for folder in tmp_path.glob("run-*")} == {"run-0", "run-1"}
    assert steps
    assert len(list(tmp_path.glob("run-1/checkpoint-*"))) == len(list(tmp_path.glob("run-0/checkpoint-*")))


@pytest.mark.slow
def test_a_model_on_another_tower_is_refused(tmp_path, demo_rows):
    trainer = make_trainer(tmp_path, demo_rows)
    model = small_model()
    model.add_lora(r=2)
    with pytest.raises(ValueError, match="model_init gave a model whose lora is"):
        trainer.use_model(model)


def quick_recipe(folder):
    values = {
        "audio_tower": "openai/whisper-tiny.en", "text_tower": "phonemes:characters", "embedding_dim": 32,
        "output_dir": str(folder / "out"), **QUICK, "max_steps": 2, "contrastive_batch_size": 64,
        "enable_hard_neg": False, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
    }  # fmt: skip
    del values["per_device_train_batch_size"]
    path = folder / "quick.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_search_over_batches_of_a_budget_of_seconds_leaves_their_clips_alone(tmp_path):
    def names(**settings):
        trial = optuna.trial.FixedTrial(
            {"learning_rate": 1e-3, "weight_decay": 0.01, "temperature": 0.1, "per_device_train_batch_size": 32}
        )
        args = TermRetrievalArguments(
            output_dir=str(tmp_path), use_cpu=True, learning_rate=1e-3, per_device_train_batch_size=64, **settings
        )
        return default_hp_space(args)(trial).keys()

    assert names() - names(max_batch_seconds=60.0) == {"per_device_train_batch_size"}


@pytest.mark.slow
def test_the_help_of_a_search_names_the_number_of_trials():
    command = [sys.executable, "scripts/tune.py", "--help"]
    printed = subprocess.run(command, cwd=RECIPES.parent.parent, capture_output=True, text=True, check=True).stdout
    assert "--trials" in printed
    assert "--learning_rate" in printed


@pytest.mark.slow
def test_a_search_ends_with_a_table_and_a_recipe_and_goes_on_where_it_was_killed(tmp_path, capsys):
    flags = ["--recipe", str(quick_recipe(tmp_path))]
    recipe = tune(*parse_recipe(TERM_RETRIEVAL, RECIPES, flags), num_trials=1)
    assert recipe == tmp_path / "out-tuning" / "best.yaml"
    # As a process that was killed in its second trial leaves it.
    killed = open_study(recipe.parent / "trials.journal", seed=0).ask()
    rate = killed.suggest_float("learning_rate", 3e-3 / 5, 3e-3 * 5, log=True)

    with pytest.raises(FileExistsError, match="holds an earlier run: --resume"):
        tune(*parse_recipe(TERM_RETRIEVAL, RECIPES, flags), num_trials=2)
    capsys.readouterr()
    recipe = tune(*parse_recipe(TERM_RETRIEVAL, RECIPES, [*flags, "--resume"]), num_trials=2)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    header, _, *rows = (re.split(r" *\| *", line) for line in table)
    assert header[1:7] == ["trial", "state", "recall@1", "recall@10", "mrr", "learning_rate"]
    assert [row[2] for row in rows] == ["complete", "complete", "fail"]
    trials = open_study(recipe.parent / "trials.journal", seed=0).trials
    assert trials[2].params["learning_rate"] == rate

    model_args, _, args = parse_recipe(TERM_RETRIEVAL, RECIPES, ["--recipe", str(recipe)])
    assert model_args.embedding_dim == 32
    assert args.output_dir == str(tmp_path / "out-tuned")
    best = max((trials[0], trials[2]), key=lambda trial: trial.value)
    assert args.learning_rate == best.params["learning_rate"]
    assert args.per_device_train_batch_size == best.params["per_device_train_batch_size"]
    assert not args.resume


def test_the_space_lies_around_the_settings_of_the_run(tmp_path):
    args = TermRetrievalArguments(output_dir=str(tmp_path), learning_rate=1e-3, per_device_train_batch_size=64)
    settings = default_hp_space(args)(optuna.create_study().ask())
    assert 2e-4 <= settings["learning_rate"] <= 5e-3
    assert settings["per_device_train_batch_size"] in (16, 32, 64)
    assert "hard_neg_weight" not in settings
