"""What a user gets to see of an error: a line where we refuse, a traceback where something broke."""

import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TrainerState, TrainingArguments

from qwen_term_retrieval.audio.sound_files import probe
from qwen_term_retrieval.batching import length_buckets
from qwen_term_retrieval.errors import BadAudioError
from qwen_term_retrieval.refusals import is_refusal, one_line_errors
from qwen_term_retrieval.runs.recipes import parse_recipe
from qwen_term_retrieval.runs.sampling import LengthBucketedSampler
from qwen_term_retrieval.trainer_callbacks import NonFiniteGuardCallback, NonFiniteStepsError
from qwen_term_retrieval.training.arguments import TERM_RETRIEVAL

ROOT = Path(__file__).parents[2]


def too_many_nonfinite_steps():
    guard = NonFiniteGuardCallback(max_nonfinite_steps=0)
    guard.note_loss(torch.tensor(torch.nan))
    args = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none")
    guard.on_pre_optimizer_step(args, TrainerState(), None, model=nn.Linear(1, 1))


REFUSALS = {
    ValueError: lambda: LengthBucketedSampler([1.0], 2, seed=0),
    FileNotFoundError: lambda: parse_recipe(TERM_RETRIEVAL, ROOT / "configs" / "recipes", ["--recipe", "nobody's"]),
    NonFiniteStepsError: too_many_nonfinite_steps,
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_we_refuse_is_one_line(kind):
    with pytest.raises(kind) as raised:
        REFUSALS[kind]()
    assert is_refusal(raised.value)
    with pytest.raises(SystemExit) as ended, one_line_errors():
        REFUSALS[kind]()
    assert ended.value.code == f"error: {raised.value}"


def test_a_file_that_the_system_refuses_is_one_line_too(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*texts\.txt: No such file or directory"), one_line_errors():
        (tmp_path / "texts.txt").read_text()


def test_an_error_of_ours_that_another_process_raised_is_one_line_too():
    with ProcessPoolExecutor(1) as pool, pytest.raises(BadAudioError) as raised:
        pool.submit(probe, "nowhere.wav").result()
    assert is_refusal(raised.value)


def step_of_zero():
    """A ValueError in a file of ours that no `raise` of ours made."""
    list(length_buckets([1.0], 0))


@pytest.mark.parametrize(
    ("broken", "kind"), [(step_of_zero, ValueError), (lambda: torch.zeros(2) @ torch.zeros(3), RuntimeError)]
)
def test_what_breaks_in_a_library_or_in_an_operation_of_ours_keeps_its_traceback(broken, kind):
    with pytest.raises(kind) as raised, one_line_errors():
        broken()
    assert not is_refusal(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "0"], "error: temperature must be positive, not 0.0"),
        (
            ["--per_device_train_batch_size", "5000"],
            r"error: \d+ training clips are fewer than one global batch",
        ),
    ],
)
def test_a_script_ends_on_what_a_user_got_wrong_in_one_line_and_with_exit_code_1(tmp_path, flags, message):
    command = [sys.executable, "scripts/train.py", "--use_cpu", "--output_dir", str(tmp_path / "run"), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.match(message, done.stderr.splitlines()[-1])
