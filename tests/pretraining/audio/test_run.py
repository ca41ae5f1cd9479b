"""A whole run: what it leaves, on disk and on the Hub, and what the retriever makes of it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.pretraining.audio import NestForPreTraining
from qwen_term_retrieval.pretraining.audio.arguments import AUDIO_PRETRAINING
from qwen_term_retrieval.pretraining.audio.nemo import write_nemo
from qwen_term_retrieval.pretraining.audio.run import run_audio_pretraining
from qwen_term_retrieval.runs.recipes import RECIPES, parse_recipe
from qwen_term_retrieval.training.arguments import TERM_RETRIEVAL
from qwen_term_retrieval.training.run import build_model
from tests.doubles.local_hub import LocalHub
from tests.processes.launching import ENVIRONMENT, ROOT

ENCODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "subsampling_conv_channels": 4}
TINY = {
    "encoder": json.dumps(ENCODER), "num_codes": 32, "normalize_input": False, "max_batch_seconds": 16,
    "max_steps": 4, "save_steps": 2, "logging_steps": 1, "warmup_steps": 1, "max_eval_clips": 8,
    "dataloader_num_workers": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A folder of audio without labels and splits."""
    folder = tmp_path_factory.mktemp("speech") / "loose"
    folder.mkdir()
    for number in range(40):
        wave = np.random.default_rng(number).normal(0, 3000, 9000 + 400 * (number % 7))
        soundfile.write(folder / f"{number}.wav", wave.astype(np.int16), 16_000, subtype="PCM_16")
    return folder


def run(dataset, folder, **settings):
    given = {"dataset": dataset, "output_dir": folder, **TINY, **settings}
    argv = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    argv += ["--use_cpu", "--disable_tqdm", "True"]
    return run_audio_pretraining(*parse_recipe(AUDIO_PRETRAINING, RECIPES, argv, default="nest_demo"))


@pytest.fixture(scope="module")
def finished(speech, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "nest"
    run(speech, folder, eval_share=0.2)
    return folder


def test_a_checkpoint_keeps_its_head_and_it_is_said(speech, finished, tmp_path, caplog):
    run(speech, tmp_path / "on", model=finished, eval_share=0.2, learning_rate=0.0)
    assert f"{finished} keeps its own head: frequency_head is for a new model" in caplog.text
    before, after = (NestForPreTraining.from_pretrained(folder) for folder in (finished, tmp_path / "on"))
    assert torch.equal(before.head.weight, after.head.weight)
    assert before.head.weight.abs().max() > 0


def test_a_run_leaves_a_model_that_loads_with_its_card_and_numbers(finished):
    model = NestForPreTraining.from_pretrained(finished)
    assert model.config.encoder.hidden_size == 16
    results = json.loads((finished / "all_results.json").read_text())
    assert {"eval_loss", "eval_accuracy", "eval_unigram_entropy", "eval_top_code_share"} <= results.keys()
    card = (finished / "README.md").read_text()
    assert f"{results['eval_loss']:.4g}" in card
    assert "--train_audio_tower" in card
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    compile(card.split("```python")[1].split("```")[0], "the card", "exec")


def test_a_run_goes_on_from_a_model_and_from_a_file_of_nemos(finished, speech, tmp_path):
    write_nemo(NestForPreTraining.from_pretrained(finished), tmp_path / "nest.nemo")
    made = [
        run(speech, tmp_path / str(number), model=model, eval_share=0.2)
        for number, model in enumerate((finished, tmp_path / "nest.nemo"))
    ]
    assert made[0]["eval_loss"] == pytest.approx(made[1]["eval_loss"])
    with pytest.raises(FileNotFoundError, match="so it is no checkpoint"):
        run(speech, tmp_path / "other", model=speech)


def test_the_script_pushes_whole_models(speech, tmp_path):
    flags = [part for name, value in TINY.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "scripts/pretrain_audio.py", *flags, "--use_cpu", "--disable_tqdm", "True"]
    command += ["--dataset", str(speech), "--output_dir", str(tmp_path / "run"), "--eval_share", "0.2"]
    with LocalHub() as hub:
        environment = ENVIRONMENT | hub.environment(tmp_path) | {"HF_HUB_OFFLINE": "0"}
        pushed = [*command, "--push_to_hub", "--hub_model_id", "me/nest"]
        done = subprocess.run(pushed, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
        files, tags = hub.files("me/nest"), hub.tags["me/nest"]
    assert {"model.safetensors", "config.json", "README.md"} <= set(files)
    assert "training_args.bin" not in files
    assert {"step-2", "final"} <= set(tags)


def tower(finished, tmp_path, **settings):
    argv = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    argv += ["--audio_tower", str(finished), "--output_dir", str(tmp_path), "--use_cpu"]
    argv += ["--text_tower", "phonemes:characters"]
    model_args, _, args = parse_recipe(TERM_RETRIEVAL, RECIPES, argv)
    return build_model(model_args, args)


def test_its_encoder_is_an_audio_tower_frozen_with_lora_or_trained(finished, tmp_path):
    nest = NestForPreTraining.from_pretrained(finished).eval()
    pcm_BS, num_samples_B = torch.randint(-3000, 3000, (2, 20_000), dtype=torch.int16), torch.tensor([20_000, 9000])
    expected_BTD = nest(pcm_BS, num_samples_B).frames_BTD
    for settings, trained in (({}, 0), ({"lora_r": 2}, 6), ({"train_audio_tower": True}, None)):
        model = tower(finished, tmp_path, **settings).eval()
        frames_BTH, num_frames_B = model.audio_frames(pcm_BS, num_samples_B)
        for row, count in enumerate(num_frames_B.tolist()):
            torch.testing.assert_close(frames_BTH[row, :count], expected_BTD[row, :count], atol=1e-5, rtol=0)
        named = dict(model.audio_tower.encoder.named_parameters())
        learned = [name for name, values in named.items() if values.requires_grad]
        assert (learned == list(named)) == (trained is None)
        assert bool(learned) == (trained != 0)
        running = model.audio_tower.layers[0].conv.norm.running_mean.clone()
        model.train()
        model.audio_frames(pcm_BS, num_samples_B)
        moved = not torch.equal(model.audio_tower.layers[0].conv.norm.running_mean, running)
        assert moved == (trained is None)
    with pytest.raises(ValueError, match="train_audio_tower trains all weights, lora_r adapters beside them"):
        tower(finished, tmp_path, lora_r=2, train_audio_tower=True)


def test_a_trained_tower_is_saved_with_the_retriever(finished, tmp_path):
    model = tower(finished, tmp_path, train_audio_tower=True)
    with torch.no_grad():
        model.audio_tower.layers[0].conv.norm.running_mean.add_(1.0)
    model.save_pretrained(tmp_path / "saved")
    again = TermRetrievalModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(
        again.audio_tower.layers[0].conv.norm.running_mean, model.audio_tower.layers[0].conv.norm.running_mean
    )
    assert TermRetrievalConfig.from_pretrained(tmp_path / "saved").audio_tower_saved


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "nowhere/at_all"}, "no dataset 'nowhere/at_all'"),
        ({"size": "huge"}, "size must be one of demo, S, M, L, XL"),
        ({"denoise": False, "augmentation": '{"noise_prob": 1}'}, "denoise False hears clean speech alone"),
        ({"model": "nowhere.nemo"}, "there is no file nowhere.nemo"),
        ({"train_split": "spoken"}, "has no split 'spoken'.*--train_split"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(settings, message, speech, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(**{"dataset": speech, "folder": tmp_path / "out", **settings})


@pytest.mark.parametrize("recipe", ["nest_demo", "nest_small", "nest_large", "nest_xlarge"])
def test_recipes_are_settings(recipe):
    model_args, _, args = parse_recipe(AUDIO_PRETRAINING, RECIPES, ["--recipe", recipe, "--use_cpu"])
    assert model_args.size in ("demo", "S", "L", "XL")
    if recipe != "nest_demo":  # NEST's own schedule
        width = {"S": 176, "L": 512, "XL": 1024}[model_args.size]
        assert args.learning_rate == pytest.approx(5 * (width * 25_000) ** -0.5, rel=1e-3)
        assert (args.warmup_steps, args.adam_beta2, args.max_grad_norm) == (25_000, 0.98, 0.0)
