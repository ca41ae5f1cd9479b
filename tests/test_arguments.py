"""Recipes and flags: one default, one way to change it, and errors that name the setting."""

from pathlib import Path

import pytest

from qwen_term_retrieval.training.arguments import TermRetrievalArguments, parse_recipe

RECIPES = Path(__file__).parent.parent / "configs" / "recipes"


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_parses(recipe):
    # bf16 needs a GPU; everything else must parse on any machine.
    _, _, args = parse_recipe(RECIPES, ["--recipe", recipe, "--bf16", "False"])
    assert args.output_dir.startswith("outputs/")


def test_no_argument_means_the_demo_recipe():
    model, data, args = parse_recipe(RECIPES, [])
    assert data.dataset == "builders/term_audio"
    assert model.audio_tower == "openai/whisper-tiny.en"
    assert args.audio_text_loss_ratio == 0.3
    assert args.audio_term_loss_ratio == 0.7


def test_a_flag_beats_the_recipe_and_the_recipe_beats_the_default(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("learning_rate: 3e-4\nseed: 5\n")
    _, _, args = parse_recipe(RECIPES, ["--recipe", str(recipe), "--seed", "6", "--output_dir", str(tmp_path)])
    assert args.learning_rate == 3e-4
    assert args.seed == 6
    assert args.num_train_epochs == 40


def test_an_unknown_setting_is_named_with_its_nearest(tmp_path):
    recipe = tmp_path / "typo.yaml"
    recipe.write_text("learnig_rate: 1\n")
    with pytest.raises(ValueError, match=r"typo\.yaml: 'learnig_rate' is no setting; did you mean 'learning_rate'"):
        parse_recipe(RECIPES, ["--recipe", str(recipe)])


def test_an_unknown_flag_is_named_with_its_nearest():
    with pytest.raises(
        ValueError, match="the command line: 'learnin_rate' is no setting; did you mean 'learning_rate'"
    ):
        parse_recipe(RECIPES, ["--learnin_rate", "3"])


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(FileNotFoundError, match=r"no recipe 'dmeo'.*demo.*laptop"):
        parse_recipe(RECIPES, ["--recipe", "dmeo"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"audio_text_loss_ratio": 0.0, "audio_term_loss_ratio": 0.0}, "nothing would be trained"),
        ({"audio_text_loss_ratio": -1.0}, "not be negative"),
        ({"remove_unused_columns": True}, "drop the audio"),
        ({"dataloader_drop_last": False}, "repeat clips"),
    ],
)
def test_settings_that_would_break_the_objective_are_refused(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        TermRetrievalArguments(output_dir=str(tmp_path), **setting)


def test_every_setting_has_a_help_text(capsys):
    with pytest.raises(SystemExit):
        parse_recipe(RECIPES, ["--help"])
    printed = capsys.readouterr().out
    for field in TermRetrievalArguments.__dataclass_fields__.values():
        if field.name in TermRetrievalArguments.__annotations__:
            assert field.metadata.get("help"), field.name
            assert f"--{field.name}" in printed
