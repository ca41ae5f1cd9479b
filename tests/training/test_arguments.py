"""Recipes and flags: one default, one way to change it, and errors that name the setting."""

import argparse
import json

import pytest

from qwen_term_retrieval.refusals import is_refusal
from qwen_term_retrieval.runs.recipes import RECIPES, parse_recipe
from qwen_term_retrieval.training.arguments import TERM_RETRIEVAL, TermRetrievalArguments


# Those named `text_…` and `nest_…` are of the pre-trainings.
@pytest.mark.parametrize(
    "recipe", sorted({*RECIPES.glob("*.yaml")} - {*RECIPES.glob("text_*.yaml")} - {*RECIPES.glob("nest_*.yaml")})
)
def test_every_recipe_parses(recipe):
    # bf16 needs a GPU; everything else must parse on any machine.
    _, _, args = parse_recipe(TERM_RETRIEVAL, RECIPES, ["--recipe", str(recipe), "--bf16", "False"])
    assert args.output_dir.startswith("outputs/")


def test_no_argument_means_the_demo_recipe():
    model, data, args = parse_recipe(TERM_RETRIEVAL, RECIPES, [])
    assert data.dataset == "builders/term_audio"
    assert model.audio_tower == "openai/whisper-tiny.en"
    assert args.audio_text_loss_ratio == 0.3
    assert args.audio_term_loss_ratio == 0.7


def test_a_flag_beats_the_recipe_and_the_recipe_beats_the_default(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("learning_rate: 3e-4\nseed: 5\n")
    _, _, args = parse_recipe(
        TERM_RETRIEVAL, RECIPES, ["--recipe", str(recipe), "--seed", "6", "--output_dir", str(tmp_path)]
    )
    assert args.learning_rate == 3e-4
    assert args.seed == 6
    assert args.num_train_epochs == 40


def test_settings_of_the_text_tower_come_from_a_recipe_or_as_json(tmp_path):
    languages = {"fr": "espeak:fr", "de": "espeak:de"}
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("text_tower_config:\n  languages: {fr: 'espeak:fr', de: 'espeak:de'}\n")
    flag = ["--text_tower_config", json.dumps({"languages": languages})]
    for settings in (["--recipe", str(recipe)], flag):
        model, _, _ = parse_recipe(TERM_RETRIEVAL, RECIPES, [*settings, "--output_dir", str(tmp_path / "run")])
        assert model.text_tower_config == {"languages": languages}
    with pytest.raises(ValueError, match=r"text_tower_config: not JSON.*'\{fr: 1\}'"):
        parse_recipe(TERM_RETRIEVAL, RECIPES, ["--text_tower_config", "{fr: 1}"])
    with pytest.raises(ValueError, match="text_tower_config must be a mapping"):
        parse_recipe(TERM_RETRIEVAL, RECIPES, ["--text_tower_config", "[1]"])


def test_an_unknown_setting_is_named_with_its_nearest(tmp_path):
    recipe = tmp_path / "typo.yaml"
    recipe.write_text("learnig_rate: 1\n")
    with pytest.raises(ValueError, match=r"typo\.yaml: 'learnig_rate' is no setting; did you mean 'learning_rate'"):
        parse_recipe(TERM_RETRIEVAL, RECIPES, ["--recipe", str(recipe)])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("lr: [1\n", "is no YAML: .*line 1"),
        ("- learning_rate\n", "expected `setting: value` lines"),
        ("learning_rate: abc\n", "invalid float value: 'abc'"),
        ("embedding_dim: 3.5\n", "invalid int value: '3.5'"),
        ("patience: null\n", "patience needs a value"),
        ("dataset:\n", "dataset needs a value"),
        ("enable_hard_neg: maybe\n", "Truthy value expected: got maybe"),
        ("window_sizes: [a]\n", "invalid int value: 'a'"),
        ("glossary: [a.txt, b.txt]\n", r"glossary takes one value, not \['a.txt', 'b.txt'\]"),
        ("learning_rate: {a: 1}\n", "learning_rate takes one value"),
        ("lr_scheduler_type: cosin\n", "invalid choice: 'cosin'"),
        ("recipe: laptop\n", "'recipe' is no setting"),
        ("help: 1\n", "'help' is no setting"),
    ],
)
def test_a_value_of_a_recipe_is_checked_as_a_flag_is_and_its_file_is_named(tmp_path, recipe, message):
    (tmp_path / "mine.yaml").write_text(recipe)
    with pytest.raises(ValueError, match=rf"mine\.yaml.*{message}") as refused:
        parse_recipe(TERM_RETRIEVAL, RECIPES, ["--recipe", str(tmp_path / "mine.yaml")])
    assert is_refusal(refused.value)


def test_values_of_a_recipe_are_what_they_mean(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "eval_strategy: no\nlearning_rate: 1e-3\nsigmoid_bias: -1e-3\ntest_split:\nwindow_sizes: 20\nbf16: no\n"
        "text_tower_config: {languages: {no: 'espeak:nb'}}\nreport_to: [none]\nsave_total_limit: null\n"
        "lr_scheduler_kwargs: {patience: 2, factor: 0.5}\n"
    )
    model, data, args = parse_recipe(TERM_RETRIEVAL, RECIPES, ["--recipe", str(tmp_path / "mine.yaml")])
    assert (args.eval_strategy, args.learning_rate, args.sigmoid_bias) == ("no", 1e-3, -1e-3)
    assert (data.test_split, model.window_sizes, args.bf16) == (None, [20], False)
    assert model.text_tower_config == {"languages": {"no": "espeak:nb"}}
    assert (args.report_to, args.save_total_limit) == ([], None)
    assert args.lr_scheduler_kwargs == {"patience": 2, "factor": 0.5}


def test_a_flag_unsets_what_a_recipe_has_set(tmp_path):
    (tmp_path / "mine.yaml").write_text("max_batch_seconds: 200\nwindow_sizes: [20, 30]\nglossary: terms.txt\n")
    flags = ["--recipe", str(tmp_path / "mine.yaml"), "--window_sizes", "None", "--glossary", "none"]
    flags += ["--max_batch_seconds", "None", "--contrastive_batch_size", "64"]
    model, data, args = parse_recipe(TERM_RETRIEVAL, RECIPES, flags)
    assert (model.window_sizes, data.glossary, args.max_batch_seconds) == (None, None, None)
    assert args.contrastive_batch_size == 64


def test_a_flag_of_the_wrong_type_is_one_line_and_not_the_usage_of_every_flag():
    with pytest.raises(ValueError, match=r"^--learning_rate/--learning-rate: invalid float value: 'abc'$"):
        parse_recipe(TERM_RETRIEVAL, RECIPES, ["--learning_rate", "abc"])


def test_a_mistaken_flag_of_a_script_s_own_is_named_with_its_nearest():
    script = argparse.ArgumentParser(add_help=False)
    script.add_argument("--trials")
    with pytest.raises(ValueError, match="'trails' is no setting; did you mean 'trials'"):
        parse_recipe(TERM_RETRIEVAL, RECIPES, ["--trails", "3"], script)


def test_an_unknown_flag_is_named_with_its_nearest():
    with pytest.raises(
        ValueError, match="the command line: 'learnin_rate' is no setting; did you mean 'learning_rate'"
    ):
        parse_recipe(TERM_RETRIEVAL, RECIPES, ["--learnin_rate", "3"])


def test_a_flag_cut_short_is_not_taken_for_a_setting():
    with pytest.raises(ValueError, match="'learning_rat' is no setting; did you mean 'learning_rate'"):
        parse_recipe(TERM_RETRIEVAL, RECIPES, ["--learning_rat", "1"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--augmentation", "{bad"], r"augmentation: not JSON.*'\{bad'"),
        (["--lora_r", "-1"], "lora_r must not be negative"),
        (["--lora_dropout", "2"], r"lora_dropout must lie in \[0, 1\), not 2.0"),
        (["--train_split", ""], "train_split must name a split"),
        (["--eval_strategy", "weekly"], "weekly is not a valid"),
    ],
)
def test_a_setting_that_cannot_be_ends_the_script_in_one_line(flags, message):
    with pytest.raises(ValueError, match=message) as refused:
        parse_recipe(TERM_RETRIEVAL, RECIPES, flags)
    assert is_refusal(refused.value)


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(FileNotFoundError, match=r"no recipe 'dmeo'.*demo.*laptop"):
        parse_recipe(TERM_RETRIEVAL, RECIPES, ["--recipe", "dmeo"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"audio_text_loss_ratio": 0.0, "audio_term_loss_ratio": 0.0}, "nothing would be trained"),
        ({"audio_text_loss_ratio": -1.0}, "not be negative"),
        ({"remove_unused_columns": True}, "drop the audio"),
        ({"dataloader_drop_last": False}, "repeat clips"),
        ({"resume": True, "overwrite": True}, "give one of the two"),
        ({"resume_from_checkpoint": "outputs/x/checkpoint-7"}, "would change nothing: --resume goes on from the last"),
        ({"do_train": True}, "do_train would change nothing: a run always trains"),
        ({"do_predict": True}, "do_predict would change nothing: a run ends with the test_split"),
        ({"train_sampling_strategy": "group_by_length"}, "would change nothing: .*max_batch_seconds"),
        ({"label_smoothing_factor": 0.1}, "would change nothing: the losses"),
        (
            {"bf16_full_eval": True, "use_cpu": True},
            "would change nothing: evaluation computes as training does: --bf16",
        ),
        ({"eval_accumulation_steps": 2}, "would change nothing: evaluation keeps ranks"),
    ],
)
def test_settings_that_would_break_the_objective_are_refused(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        TermRetrievalArguments(output_dir=str(tmp_path), **setting)


def test_every_setting_has_a_help_text(capsys):
    with pytest.raises(SystemExit):
        parse_recipe(TERM_RETRIEVAL, RECIPES, ["--help"])
    printed = capsys.readouterr().out
    for field in TermRetrievalArguments.__dataclass_fields__.values():
        if field.name in TermRetrievalArguments.__annotations__ and field.init:
            assert field.metadata.get("help"), field.name
            assert f"--{field.name}" in printed


def test_the_contrastive_batch_is_shared_out_over_ranks_and_is_otherwise_a_rank_s_batch(tmp_path):
    def batch(**settings):
        return TermRetrievalArguments(output_dir=str(tmp_path), use_cpu=True, **settings).per_device_train_batch_size

    assert batch() == 128
    assert batch(per_device_train_batch_size=32) == 32
    assert batch(contrastive_batch_size=8192) == 8192
    assert batch(contrastive_batch_size=96, per_device_train_batch_size=96) == 96


def test_the_contrastive_batch_is_shared_out_over_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr(TermRetrievalArguments, "world_size", 4)
    args = TermRetrievalArguments(output_dir=str(tmp_path), use_cpu=True, contrastive_batch_size=8192)
    assert args.per_device_train_batch_size == 2048
    with pytest.raises(ValueError, match="10 cannot be shared out evenly over 4 ranks; the nearest that can is 8"):
        TermRetrievalArguments(output_dir=str(tmp_path), use_cpu=True, contrastive_batch_size=10)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"contrastive_batch_size": 64, "per_device_train_batch_size": 32},
            "give one of the two, or both as 64 and 64",
        ),
        ({"contrastive_batch_size": 64, "auto_find_batch_size": True}, "set gradcache_chunk"),
        ({"gradcache_chunk": 0}, "gradcache_chunk must be at least 1"),
        ({"loss": "triplet"}, r"loss must be one of \('infonce', 'sigmoid'\)"),
        ({"window_reduction": "mean"}, "window_reduction must be one of"),
        ({"window_temperature": 0.0}, "window_temperature must be positive"),
        ({"hard_neg_k": 0}, "hard_neg_k must be at least 1"),
        ({"no_term_weight": -0.1}, "no_term_weight must not be negative"),
        ({"max_nonfinite_steps": -1}, "max_nonfinite_steps must not be negative"),
        ({"patience": -1}, "patience must not be negative"),
        ({"span_jitter": 0.5}, r"span_jitter must lie in \[0, 0.5\)"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        TermRetrievalArguments(output_dir=str(tmp_path), use_cpu=True, **setting)


def test_the_plateau_schedule_waits_for_recall_to_rise(tmp_path):
    def schedule(**settings):
        settings = {"lr_scheduler_type": "reduce_lr_on_plateau", **settings}
        return TermRetrievalArguments(output_dir=str(tmp_path), use_cpu=True, **settings).lr_scheduler_kwargs

    assert schedule() == {"mode": "max"}
    assert schedule(lr_scheduler_kwargs={"patience": 2}) == {"mode": "max", "patience": 2}
    assert schedule(greater_is_better=False, metric_for_best_model="eval_loss") == {"mode": "min"}


def test_a_loss_that_is_not_finite_is_hidden_from_the_log_only_where_the_guard_counts_it(tmp_path):
    assert TermRetrievalArguments(output_dir=str(tmp_path), use_cpu=True).logging_nan_inf_filter
    unguarded = TermRetrievalArguments(output_dir=str(tmp_path), use_cpu=True, skip_nonfinite_steps=False)
    assert not unguarded.logging_nan_inf_filter


@pytest.mark.parametrize(
    ("name", "settings", "variable"),
    [
        ("FSDP", {"fsdp": True, "fsdp_config": {"version": 2}}, None),
        ("FSDP", {}, "ACCELERATE_USE_FSDP"),
        ("DeepSpeed", {"deepspeed": "zero2.json"}, None),
        ("DeepSpeed", {}, "ACCELERATE_USE_DEEPSPEED"),
        ("Megatron-LM", {}, "ACCELERATE_USE_MEGATRON_LM"),
        ("a parallelism_config", {}, "ACCELERATE_USE_PARALLELISM_CONFIG"),
    ],
)
def test_a_launch_that_cuts_the_model_up_is_refused_with_what_to_do(tmp_path, monkeypatch, name, settings, variable):
    if variable:
        monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match=rf"cannot train by {name}, which cuts .* Launch it by DDP, as configs/acc"):
        TermRetrievalArguments(output_dir=str(tmp_path), use_cpu=True, **settings)
