"""What trackers of `--report_to` get to see, and what happens where one is missing."""

import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qwen_term_retrieval.runs.recipes import parse_recipe
from qwen_term_retrieval.trainer_callbacks import ThroughputCallback
from qwen_term_retrieval.training.arguments import TERM_RETRIEVAL, DataArguments, ModelArguments, TermRetrievalArguments
from qwen_term_retrieval.training.run import run_training
from tests.doubles.tiny_trainer import make_tiny_trainer

RECIPES = Path(__file__).parents[2] / "configs" / "recipes"
AUGMENTATION = {"speed_prob": 0.25, "speed": [0.9, 1.1]}
# The part of W&B's client that the Trainer's callback calls when training begins; it keeps the settings it is given.
WANDB = """
run = None
class Run:
    summary = {}
    def _label(self, code): pass
class Config(dict):
    def update(self, values, allow_val_change): super().update(values)
def init(**settings):
    global run
    run = Run()
def log(values): pass
config = Config()
"""


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """A run that reports to TensorBoard: its trainer, and what its event files hold."""
    folder = tmp_path_factory.mktemp("run")
    trainer = make_tiny_trainer(
        folder,
        callbacks=[ThroughputCallback()],
        **{"report_to": ["tensorboard"], "num_train_epochs": 2, "augmentation": AUGMENTATION, "enable_hard_neg": True},
    )
    trainer.train()
    (written,) = folder.glob("runs/*")
    accumulator = EventAccumulator(str(written))
    accumulator.Reload()
    return trainer, accumulator


@pytest.mark.slow
@pytest.mark.parametrize(
    "tag",
    [
        *(
            "train/loss",
            "train/audio_text_loss",
            "train/audio_term_loss",
            "train/hard_negative_loss",
            "train/temperature",
        ),
        *("train/clips_per_second", "train/audio_seconds_per_second", "train/nonfinite_steps", "train/hard_neg_age"),
        *("eval/recall@1", "eval/recall@10", "eval/recall@10_unseen", "eval/mrr"),
    ],
)
def test_tensorboard_gets_every_part_of_the_loss_the_throughput_and_recall(events, tag):
    trainer, accumulator = events
    scalars = accumulator.Scalars(tag)
    assert [scalar.step for scalar in scalars] == ([2, 4] if tag.startswith("eval/") else [1, 2, 3, 4])
    assert all(math.isfinite(scalar.value) for scalar in scalars)
    if tag == "eval/recall@10":
        logged = [entry["eval_recall@10"] for entry in trainer.state.log_history if "eval_recall@10" in entry]
        assert [scalar.value for scalar in scalars] == pytest.approx(logged)


@pytest.mark.slow
def test_tensorboard_gets_the_settings_of_run_and_model(events):
    _, accumulator = events
    text = accumulator.Tensors("args/text_summary")[0].tensor_proto.string_val[0]
    settings = json.loads(text)
    assert settings["augmentation"] == AUGMENTATION
    assert settings["audio_term_loss_ratio"] == 0.7
    model = json.loads(accumulator.Tensors("model_config/text_summary")[0].tensor_proto.string_val[0])
    assert model["embedding_dim"] == 16


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is not None, reason="the stand-in would be mistaken for the wandb that is here")
def test_wandb_gets_the_settings_of_run_and_model_nested_ones_as_they_are(tmp_path, monkeypatch):
    package = tmp_path / "packages" / "wandb"
    (package / "sdk" / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text(WANDB)
    (package / "sdk" / "lib" / "config_util.py").write_text("class ConfigError(Exception): pass\n")
    monkeypatch.syspath_prepend(package.parent)
    trainer = make_tiny_trainer(tmp_path / "run", report_to=["wandb"], num_train_epochs=1, augmentation=AUGMENTATION)
    trainer.args.record(
        ModelArguments(text_tower_config={"hidden_size": 16}), DataArguments("packs/mine", glossary="g")
    )
    trainer.train()
    config = sys.modules["wandb"].config
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        del sys.modules[name]
    assert config["augmentation"] == AUGMENTATION
    assert config["audio_tower_config"]["d_model"] == 8
    assert config["hard_neg_k"] == 10
    assert (config["dataset"], config["glossary"], config["lora_r"]) == ("packs/mine", "g", 0)
    assert config["text_tower_config"]["hidden_size"] == 16


def test_trackers_are_told_the_recipe_and_what_was_trained_on_what(tmp_path):
    flags = ["--dataset", "packs/mine", "--window_sizes", "50", "--use_cpu", "--output_dir", str(tmp_path)]
    model_args, data_args, args = parse_recipe(TERM_RETRIEVAL, RECIPES, ["--recipe", "laptop", *flags])
    with pytest.raises(FileNotFoundError, match="packs/mine"):
        run_training(model_args, data_args, args)
    told = json.loads(args.to_json_string())
    assert {"recipe": "laptop", "dataset": "packs/mine", "window_sizes": [50], "lora_r": 0}.items() <= told.items()
    assert told["augmentation"] == args.augmentation
    assert "given" not in told
    assert args.to_sanitized_dict()["window_sizes"] == "[50]"


def test_settings_can_be_written_as_plain_values_for_trackers_that_know_no_mapping(tmp_path):
    args = TermRetrievalArguments(output_dir=str(tmp_path), augmentation=AUGMENTATION, hub_token="hf_secret")
    plain = args.to_sanitized_dict()
    assert all(isinstance(value, bool | int | float | str) for value in plain.values())
    assert plain["augmentation"] == str(AUGMENTATION)
    assert "hf_secret" not in json.dumps(plain)


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_tracker_whose_package_is_missing_is_refused_before_anything_is_loaded(tracker):
    if find_spec(tracker) is not None:
        pytest.skip(f"{tracker} is installed here")
    with pytest.raises(ValueError, match=f"'{tracker}' is not installed; `pip install {tracker}`, or --report_to none"):
        parse_recipe(TERM_RETRIEVAL, RECIPES, ["--report_to", tracker])


def test_a_tracker_that_nobody_knows_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"report_to='tensorbored' is no tracker; there are .*, tensorboard, "):
        parse_recipe(TERM_RETRIEVAL, RECIPES, ["--report_to", "tensorbored"])
