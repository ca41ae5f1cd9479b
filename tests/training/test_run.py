"""`scripts/train.py` as a user runs it: to a model that searches, onto the Hub, and never over an earlier run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import PrinterCallback, ProgressCallback

from qwen_term_retrieval import TermRetriever, resolve_checkpoint
from qwen_term_retrieval.models import TermRetrievalModel
from qwen_term_retrieval.models.model_card import model_card
from qwen_term_retrieval.runs.checkpoints.resuming import last_whole_checkpoint
from qwen_term_retrieval.runs.recipes import parse_recipe
from qwen_term_retrieval.runs.starting import prepare_output_dir, show_loss_behind_the_bar
from qwen_term_retrieval.storage.packages import cache_root
from qwen_term_retrieval.trainer_callbacks import ProgressLineCallback
from qwen_term_retrieval.training.arguments import TERM_RETRIEVAL, DataArguments, ModelArguments, TermRetrievalArguments
from qwen_term_retrieval.training.run import (
    build_model,
    check_durations,
    check_same_model,
    checked_rows,
    run_training,
)
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer
from tests.doubles.local_hub import LocalHub
from tests.doubles.tiny_trainer import make_tiny_trainer, tiny_model

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "configs" / "recipes"
QUICK = ["--num_train_epochs", "2", "--per_device_train_batch_size", "128", "--use_cpu"]


def train(*flags, environment=None):
    command = [sys.executable, "scripts/train.py", *QUICK, *flags]
    environment = {**(environment or os.environ), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A short run of the demo recipe, pushed to a hub of our own: its output folder, what it printed, the files."""
    home = tmp_path_factory.mktemp("home")
    # Weights and frames that this machine has already need not be fetched again for a new HF_HOME.
    (home / "qwen_term_retrieval").symlink_to(cache_root())
    output = home / "run"
    with LocalHub() as hub:
        tower = resolve_checkpoint("openai/whisper-tiny.en")  # by folder: this hub does not have it
        environment = hub.environment(home) | {"HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)}
        flags = ["--audio_tower", str(tower), "--output_dir", str(output)]
        flags += ["--push_to_hub", "--hub_model_id", "user/ears", "--report_to", "tensorboard"]
        done = train(*flags, environment=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return output, done.stdout, dict(hub.files("user/ears", "best"))


@pytest.mark.slow
def test_a_run_writes_the_metrics_of_every_stage(pushed):
    output, printed, _ = pushed
    test = json.loads((output / "test_results.json").read_text())
    assert {"test_recall@10", "test_recall@10_seen", "test_recall@10_unseen", "test_f1"} <= test.keys()
    assert json.loads((output / "train_results.json").read_text())["total_flos"] > 0
    evaluated = json.loads((output / "eval_results.json").read_text())
    assert evaluated["eval_recall@10"] > 0.1
    assert not any(name.startswith("train_") for name in evaluated)
    assert {"train_loss", "eval_recall@10", "test_recall@10"} <= json.loads(
        (output / "all_results.json").read_text()
    ).keys()
    assert re.search(r"^\| unseen +\|", printed, re.MULTILINE)


@pytest.mark.slow
def test_the_model_on_the_hub_is_small_carries_its_card_and_its_threshold(pushed):
    _, _, files = pushed
    assert {"config.json", "model.safetensors", "README.md"} <= files.keys()
    assert not any(name.startswith("checkpoint") for name in files)
    assert len(files["model.safetensors"]) < 10e6
    card = files["README.md"].decode()
    assert "`builders/term_audio`, split `train`" in card
    assert "| test | unseen |" in card
    assert "| split | precision | recall | f1 | false_alarms_per_minute |" in card
    threshold = json.loads(files["config.json"])["threshold"]
    assert threshold > 0
    assert f"from a score of {threshold:.4f} on" in card


@pytest.mark.slow
def test_the_trained_model_searches_a_recording(pushed):
    output, _, _ = pushed
    retriever = TermRetriever.from_pretrained(output)
    retriever.index(ROOT / "builders/term_audio/glossary.json")
    clip = ROOT / "builders/term_audio/demo/test/flite-awb/0001.ogg"  # "Cape of Good Hope"
    matches = retriever.search(clip, top_k=100, threshold=-1.0)
    assert "Cape of Good Hope" in [match.term for match in matches]


@pytest.mark.slow
def test_tensorboard_has_the_settings_of_the_run_its_data_and_its_model(pushed):
    output, _, _ = pushed
    (events,) = output.glob("runs/*")
    accumulator = EventAccumulator(str(events)).Reload()
    told = json.loads(accumulator.Tensors("args/text_summary")[0].tensor_proto.string_val[0])
    expected = {"recipe": "demo", "dataset": "builders/term_audio", "train_split": "train", "num_train_epochs": 2}
    assert expected.items() <= told.items()
    assert told["audio_tower"] == str(resolve_checkpoint("openai/whisper-tiny.en"))


@pytest.mark.slow
def test_an_earlier_run_is_never_written_over(pushed):
    output, _, _ = pushed
    before = (output / "model.safetensors").read_bytes()
    done = train("--output_dir", str(output))
    assert done.returncode == 1
    assert "holds an earlier run: --resume goes on with it, --overwrite deletes it" in done.stderr
    assert (output / "model.safetensors").read_bytes() == before


def test_overwrite_deletes_the_earlier_run_of_the_default_recipe_and_resume_goes_on_with_it(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 5}')

    def prepare(*flags):
        _, _, args = parse_recipe(TERM_RETRIEVAL, RECIPES, ["--output_dir", str(tmp_path / "run"), "--use_cpu", *flags])
        return prepare_output_dir(args)

    with pytest.raises(FileExistsError, match="--resume goes on with it, --overwrite deletes it"):
        prepare("--learning_rate", "1e-4")
    assert prepare("--resume") == str(checkpoint)
    assert prepare("--overwrite") is None
    assert not checkpoint.exists()


def test_a_checkpoint_that_was_not_written_to_its_end_is_left_aside(tmp_path):
    states = {2: '{"global_step": 2}', 10: '{"global_step": 10}', 12: '{"global_step": 1', 14: None}
    for step, state in states.items():
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    from_the_hub = tmp_path / "last-checkpoint"
    from_the_hub.mkdir()
    (from_the_hub / "trainer_state.json").write_text('{"global_step": 11}')
    assert last_whole_checkpoint(tmp_path) == str(from_the_hub)


@pytest.mark.slow
def test_a_run_on_top_of_a_frozen_one_adapts_its_tower_and_its_model_says_so(tmp_path):
    make_tiny_trainer(tmp_path / "before").save_model()
    args = TermRetrievalArguments(output_dir=str(tmp_path / "run"), use_cpu=True)
    model = build_model(ModelArguments(model=str(tmp_path / "before"), lora_r=2, attn_implementation="eager"), args)
    in_the_tower = dict(model.audio_tower.named_parameters())
    assert {name for name, values in in_the_tower.items() if values.requires_grad} == {
        name for name in in_the_tower if "lora_" in name
    }
    assert model.audio_tower.encoder.config._attn_implementation == "eager"
    model.save_pretrained(tmp_path / "after")
    reloaded = TermRetrievalModel.from_pretrained(tmp_path / "after")
    assert "LoRA of rank 2" in model_card(reloaded.config)
    assert reloaded.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match=r"lora_r is 4, but .*after has LoRA of rank 2: give that, or 0"):
        build_model(ModelArguments(model=str(tmp_path / "after"), lora_r=4), args)


@pytest.mark.slow
def test_a_model_to_go_on_from_starts_at_the_temperature_and_the_bias_asked_for_or_at_its_own(tmp_path):
    before = make_tiny_trainer(tmp_path / "before", loss="sigmoid", temperature=0.1, sigmoid_bias=-3.0)
    before.save_model()

    def start(**settings):
        args = TermRetrievalArguments(
            output_dir=str(tmp_path / "run"), use_cpu=True, loss="sigmoid", eval_strategy="no", **settings
        )
        model = build_model(ModelArguments(model=str(tmp_path / "before")), args)
        TermRetrievalTrainer(model, args, glossary=before.glossary)
        assert model.config.logit_bias == pytest.approx(model.logit_bias.item())
        return 1 / model.logit_scale.exp().item(), model.logit_bias.item()

    assert start() == pytest.approx((0.1, -3.0))
    assert start(temperature=0.2) == pytest.approx((0.2, -3.0))
    assert start(sigmoid_bias=-1.0) == pytest.approx((0.1, -1.0))


@pytest.mark.slow
def test_a_model_to_go_on_from_keeps_its_towers_and_heads_and_names_the_settings_that_are_not_theirs(tmp_path, caplog):
    trainer = make_tiny_trainer(tmp_path / "before")
    trainer.retrieval_model.add_lora(r=2, alpha=4, dropout=0.0)
    trainer.save_model()

    def warned_of(*flags):
        flags = ["--model", str(tmp_path / "before"), "--output_dir", str(tmp_path / "run"), "--use_cpu", *flags]
        recipe = tmp_path / "plain.yaml"
        recipe.write_text("attn_implementation: eager\n")
        model_args, _, args = parse_recipe(TERM_RETRIEVAL, RECIPES, ["--recipe", str(recipe), *flags])
        caplog.clear()
        build_model(model_args, args)
        return caplog.text

    assert warned_of() == ""
    assert warned_of("--text_tower_config", '{"hidden_size": 16}', "--lora_alpha", "4") == ""
    warned = warned_of("--embedding_dim", "64", "--pooling", "attention", "--window_sizes", "50", "--audio_layers", "1",
        "--text_tower_config", '{"hidden_size": 8, "num_blocks": 3}')  # fmt: skip
    for kept in ("pooling 'pyramid' (not 'attention')", "embedding_dim 16 (not 64)", "window_sizes None (not [50])"):
        assert kept in warned
    assert "text_tower_config {'hidden_size': 16, 'num_blocks': 3} (not {'hidden_size': 8, 'num_blocks': 3})" in warned
    assert "audio_" not in warned
    # Their own defaults, asked for by name.
    warned = warned_of("--embedding_dim=384", "--window_stride", "5", "--lora_r", "0", "--lora_dropout", "0.1")
    for kept in ("embedding_dim 16 (not 384)", "window_stride None (not 5)", "lora_r 2 (not 0)", "lora_dropout 0.0"):
        assert kept in warned
    assert "lora_alpha" not in warned


@pytest.mark.slow
def test_a_run_does_not_go_on_from_the_checkpoint_of_another_model(tmp_path):
    trainer = make_tiny_trainer(tmp_path)
    trainer.save_model()
    config = trainer.retrieval_model.config
    check_same_model(config, str(tmp_path))
    config.embedding_dim = 8
    with pytest.raises(ValueError, match="was trained with embedding_dim 16, not 8: resume with its own settings"):
        check_same_model(config, str(tmp_path))


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("world_size", 2, "2 processes were asked for but 1 run: launch with torchrun"),
        ("n_gpu", 8, "one process sees 8 GPUs, .* launch one process a GPU with torchrun"),
    ],
)
def test_a_launch_that_is_not_one_process_a_gpu_is_refused_before_an_earlier_run_is_deleted(
    tmp_path, monkeypatch, name, number, message
):
    (tmp_path / "model.safetensors").touch()
    args = TermRetrievalArguments(output_dir=str(tmp_path), use_cpu=True, overwrite=True)
    monkeypatch.setattr(TermRetrievalArguments, name, number)
    with pytest.raises(RuntimeError, match=message):
        run_training(ModelArguments(), DataArguments(), args)
    with pytest.raises(RuntimeError, match=message):
        TermRetrievalTrainer(tiny_model(), args)
    assert (tmp_path / "model.safetensors").exists()


def test_evaluations_need_a_split_to_evaluate_on(tmp_path):
    args = TermRetrievalArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="without an eval_split there is nothing to evaluate on"):
        run_training(ModelArguments(), DataArguments(eval_split=None), args)


@pytest.mark.slow
@pytest.mark.parametrize(("disable_tqdm", "shown"), [(False, ProgressLineCallback), (True, PrinterCallback)])
def test_a_run_shows_a_bar_or_lines_and_not_both(tmp_path, disable_tqdm, shown):
    trainer = make_tiny_trainer(tmp_path, disable_tqdm=disable_tqdm)
    show_loss_behind_the_bar(trainer)
    showing = [one for one in trainer.callback_handler.callbacks if isinstance(one, ProgressCallback | PrinterCallback)]
    assert [type(callback) for callback in showing] == [shown]


def test_a_split_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"no split 'dev'; it has \['test', 'train', 'validation'\]"):
        checked_rows(DataArguments(eval_split="dev"))


def test_a_dataset_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="no dataset 'nowhere': no folder here"):
        checked_rows(DataArguments(dataset="nowhere"))


def test_a_clip_too_long_for_the_tower_is_named(demo_rows):
    longest = max(demo_rows["test"]["duration"])
    with pytest.raises(ValueError, match=r"longer than 2 s, the first is row \d+, key 'test/.*Cut them into chunks"):
        check_durations(demo_rows["test"], "the demo", max_seconds=2.0)
    check_durations(demo_rows["test"], "the demo", max_seconds=longest)
