"""Settings of a text pre-training: recipes, flags, and the launch lines of the system before this one."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import yaml

from qwen_term_retrieval.pretraining.text.arguments import (
    ALIASES,
    TEXT_PRETRAINING,
    TextDataArguments,
    TextModelArguments,
    TextPretrainingArguments,
    own_names,
)
from qwen_term_retrieval.pretraining.text.run import run_text_pretraining
from qwen_term_retrieval.runs.recipes import parse_recipe
from tests.processes.launching import ENVIRONMENT, ROOT

RECIPES = ROOT / "configs" / "recipes"
PAGE = ROOT / "docs" / "pretraining.md"


def parsed(*flags):
    return parse_recipe(TEXT_PRETRAINING, RECIPES, [*flags, "--use_cpu"], default="text_demo")


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("text_*.yaml")))
def test_every_recipe_parses(recipe):
    _, data, args = parsed("--recipe", recipe)
    assert data.dataset == f"data/{recipe}"
    assert args.output_dir == f"outputs/{recipe}"


@pytest.mark.parametrize(
    ("recipe", "epochs", "save_steps"),
    [("text_1m", 5, 2000), ("text_5m", 4, 3000), ("text_10m", 3, 5000), ("text_50m", 2, 10_000)],
)
def test_recipes_by_size_are_those_of_the_system_before(recipe, epochs, save_steps):
    model, _, args = parsed("--recipe", recipe)
    assert (args.num_train_epochs, args.save_steps, args.eval_steps) == (epochs, save_steps, save_steps)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.max_seq_len) == (32, 2, 192)
    assert (args.learning_rate, args.warmup_steps, args.logging_steps) == (1e-4, 1024, 100)
    assert (model.hidden_size, model.intermediate_size, model.num_layers, model.num_heads) == (768, 3072, 10, 12)
    assert args.bf16


def test_flags_of_the_system_before_stand_for_ours():
    line = "train --batch_size_per_gpu=24 --max_seq_len=128 --is_keep_training=True --learn_rate 5e-5 --epochs 4"
    model, _, args = parsed(*own_names(line.split()))
    assert args.output_dir == "outputs/text_10m"  # the recipe that this line meant
    assert model.num_layers == 10
    assert (args.per_device_train_batch_size, args.max_seq_len, args.resume) == (24, 128, True)
    assert (args.learning_rate, args.num_train_epochs) == (5e-5, 4)
    assert own_names(["train", "--recipe", "text_1m"]) == ["--recipe", "text_1m"]
    assert set(ALIASES.values()) <= {field.name for field in dataclasses.fields(TextPretrainingArguments)}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size_per_gpus=24"], "'batch_size_per_gpus' is no setting"),
        (["--max_seq_length", "128"], "'max_seq_length' is no setting; did you mean 'max_seq_len'"),
        (["--architecture", "gpt"], "architecture must be one of t5, qwen3, not 'gpt'"),
        (["--num_heads", "7"], "num_heads 7 must divide hidden_size 192"),
        (["--loss_on", "prompt"], "loss_on must be one of response, all, not 'prompt'"),
        (["--max_batch_seconds", "30"], "max_batch_seconds counts audio"),
    ],
)
def test_what_cannot_be_is_refused_with_the_setting(flags, message):
    with pytest.raises(ValueError, match=message):
        parsed(*own_names(flags))


def test_epochs_that_are_asked_for_take_the_place_of_a_recipes_steps():
    assert parsed()[2].max_steps == 500
    assert parsed("--num_train_epochs", "2")[2].max_steps == -1
    assert parsed("--num_train_epochs", "2", "--max_steps", "7")[2].max_steps == 7


@pytest.mark.slow
def test_the_launch_line_of_the_system_before_runs_on_the_cpu_and_goes_on_where_it_was(dataset, tmp_path):
    """`accelerate launch` needs GPUs for three processes; what it starts is this line, here in one.

    Without the recipe's bf16, which a processor without instructions for it computes ten times as slowly.
    """
    line = (
        f"scripts/pretrain_text.py train --batch_size_per_gpu=24 --max_seq_len=128 --is_keep_training=True --use_cpu \
        --dataset {dataset} --output_dir {tmp_path / 'run'} --row_length 256 --hidden_size 16 --intermediate_size 16 \
        --num_heads 2 --num_layers 1 --bf16 False --save_steps 2 --eval_steps 2 --logging_steps 1 --warmup_steps 1 \
        --max_steps"
    )

    def launch(max_steps):
        command = [sys.executable, *line.split(), str(max_steps), "--disable_tqdm", "True"]
        done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stderr

    assert "bits a byte" in launch(2)
    run_text_pretraining(*parsed(*own_names([*line.split()[1:], "4", "--disable_tqdm", "True"])))
    steps = [json.loads(row)["step"] for row in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [1, 2, 3, 4]
    assert {"model.safetensors", "tokenizer.json", "README.md", "all_results.json"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }


SETTINGS = {
    name: arguments.__dataclass_fields__[name].default
    for arguments in (TextModelArguments, TextDataArguments, TextPretrainingArguments)
    for name in arguments.__annotations__
}
TABLE = dict(re.findall(r"^\| `(\w+)` \| `?([^|]*?)`? \| .+ \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_documented_with_its_default(name):
    said = None if TABLE[name] == "none" else yaml.safe_load(TABLE[name])
    assert said == SETTINGS[name]
