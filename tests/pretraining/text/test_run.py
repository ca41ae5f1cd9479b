"""A whole run: what it leaves, on disk and on the Hub, and what the retriever makes of it."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForTextEncoding, AutoTokenizer

from qwen_term_retrieval import export_encoder
from qwen_term_retrieval.models.text_towers.tower import build_text_tower
from qwen_term_retrieval.pretraining.text.arguments import TEXT_PRETRAINING
from qwen_term_retrieval.pretraining.text.run import run_text_pretraining
from qwen_term_retrieval.runs.recipes import RECIPES, parse_recipe
from tests.doubles.local_hub import LocalHub
from tests.doubles.text_pairs import prepared
from tests.processes.launching import ENVIRONMENT, ROOT

TINY = {
    "hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "max_seq_len": 32, "row_length": 64,
    "max_steps": 4, "save_steps": 2, "eval_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 8,
    "warmup_steps": 1, "max_eval_pairs": 16, "num_generations": 1, "learning_rate": 1e-3,
}  # fmt: skip


def run(dataset, folder, **settings):
    given = {"dataset": dataset, "output_dir": folder, **TINY, **settings}
    argv = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    argv += ["--use_cpu", "--disable_tqdm", "True"]
    return run_text_pretraining(*parse_recipe(TEXT_PRETRAINING, RECIPES, argv, default="text_demo"))


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """The folder of a small T5."""
    folder = tmp_path_factory.mktemp("run") / "t5"
    run(dataset, folder)
    return folder


def test_a_run_leaves_a_model_that_loads_and_answers_with_its_tokenizer_card_and_numbers(finished):
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(finished), AutoTokenizer.from_pretrained(finished)
    assert tokenizer.model_max_length == 32
    ids = model.generate(**tokenizer("ba bio", return_tensors="pt"), max_new_tokens=4)
    assert isinstance(tokenizer.decode(ids[0], skip_special_tokens=True), str)
    results = json.loads((finished / "all_results.json").read_text())
    assert {"eval_loss", "eval_perplexity", "eval_bits_per_byte", "train_loss"} <= results.keys()
    card = (finished / "README.md").read_text()
    assert f"{results['eval_loss']:.4f}" in card
    assert "text tower" in card
    assert (finished / "log.jsonl").read_text().count('"loss"') == 4


def test_a_test_split_is_judged_once_at_the_end(tmp_path):
    data = prepared(tmp_path / "data", 300, vocab_size=300, test=0.2)
    run(data, tmp_path / "run", max_steps=2)
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert {"test_loss", "test_perplexity", "test_bits_per_byte"} <= results.keys()


def test_a_decoder_is_trained_saved_and_loaded_too(dataset, tmp_path):
    run(dataset, tmp_path / "qwen3", architecture="qwen3", loss_on="all")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "qwen3").config.num_hidden_layers == 1
    with pytest.raises(ValueError, match="a decoder: it has no encoder"):
        export_encoder(tmp_path / "qwen3")


def test_the_exported_encoder_equals_that_of_the_t5_and_both_are_text_towers(finished):
    folder = export_encoder(finished)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(["ba bio", "hel"], return_tensors="pt", padding=True)
    whole = AutoModelForSeq2SeqLM.from_pretrained(finished).eval().encoder
    alone = AutoModelForTextEncoding.from_pretrained(folder).eval()
    with torch.no_grad():
        names = ("input_ids", "attention_mask")
        own = {name: inputs[name] for name in names}
        assert torch.equal(whole(**own).last_hidden_state, alone(**own).last_hidden_state)
        vectors = []
        for name in (finished, folder):
            tower = build_text_tower(str(name), None, pooling="pyramid").eval()
            tower.encoder.load_state_dict(tower.base_tensors())
            vectors.append(tower(**tower.tokenize(["ba bio", "hel"])))
    assert torch.equal(*vectors)
    with pytest.raises(FileExistsError):
        export_encoder(finished)


def test_training_goes_on_from_a_checkpoint_as_a_new_run(finished, dataset, tmp_path):
    before = json.loads((finished / "all_results.json").read_text())["eval_loss"]
    metrics = run(dataset, tmp_path / "on", model=finished, max_steps=2, learning_rate=1e-9)
    assert metrics["eval_loss"] == pytest.approx(before, abs=1e-3)


@pytest.mark.slow
def test_checkpoints_and_the_model_reach_the_hub_whole(dataset, tmp_path):
    flags = [part for name, value in TINY.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "scripts/pretrain_text.py", *flags, "--use_cpu", "--disable_tqdm", "True"]
    command += ["--dataset", str(dataset), "--output_dir", str(tmp_path / "run")]
    with LocalHub() as hub:
        environment = ENVIRONMENT | hub.environment(tmp_path) | {"HF_HUB_OFFLINE": "0"}
        pushed = [*command, "--push_to_hub", "--hub_model_id", "me/text"]
        done = subprocess.run(pushed, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        files, tags = hub.files("me/text"), hub.tags["me/text"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md"} <= set(files)
    assert "training_args.bin" not in files
    assert {"step-2", "final"} <= set(tags)


def test_what_is_in_the_way_or_missing_is_said_before_anything_is_built(finished, dataset, tmp_path):
    with pytest.raises(FileExistsError, match="--resume goes on with it"):
        run(dataset, finished)
    with pytest.raises(FileNotFoundError, match=r"has no tokens/train and no .*: make it with `python scripts/prepare"):
        run(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
