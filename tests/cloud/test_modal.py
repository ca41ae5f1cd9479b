import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import modal
import pytest

from qwen_term_retrieval.cloud import modal_containers
from qwen_term_retrieval.cloud.launching import TrainingFailedError, launch_training, training_command
from qwen_term_retrieval.cloud.modal_runs import (
    check_model_is_there,
    claim_run,
    download_run,
    hub_flags,
    recipe_flags,
    rent,
    upload_pack,
)

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "modal_train.py"
TRAIN = ROOT / "scripts" / "train.py"
RECIPES = ROOT / "configs" / "recipes"

# Stands for scripts/train.py: writes a checkpoint, fails as often as it is told to, and says what it was called with.
TRAINING = """
import json, pathlib, sys, time
args = sys.argv[1:]
out = pathlib.Path(args[args.index("--output_dir") + 1])
out.mkdir(parents=True, exist_ok=True)
states = [state.read_text() for state in out.glob("checkpoint-*/trainer_state.json")]
steps = [json.loads(state)["global_step"] for state in states if state.endswith("}")]
if "--fail-at-once" in args:
    sys.exit(3)
checkpoint = out / f"checkpoint-{max(steps, default=0) + 10}"
checkpoint.mkdir(exist_ok=True)
(checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": max(steps, default=0) + 10}))
if "--fail" in args:
    sys.exit(3)
if "--sleep" in args:
    time.sleep(600)
(out / "all_results.json").write_text(json.dumps({"test_recall@10": 0.9, "resumed_from": max(steps, default=0)}))
(out / "called_with.json").write_text(json.dumps(args))
"""


def load(path=SCRIPT):
    spec = importlib.util.spec_from_file_location("modal_train_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load()


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "repository" / "scripts").mkdir(parents=True)
    (tmp_path / "repository" / "scripts" / "train.py").write_text(TRAINING)
    shutil.copytree(ROOT / "configs" / "accelerate", tmp_path / "repository" / "configs" / "accelerate")
    return tmp_path / "repository"


def test_the_app_is_complete_without_an_account(script):
    assert isinstance(script.train, modal.Function)
    assert isinstance(script.train.with_options(gpu="H100:2", cpu=8), modal.Function)


def test_the_script_imports_where_the_repository_is_not(tmp_path):
    # In the container Modal puts the script alone into /root.
    load(Path(shutil.copy(SCRIPT, tmp_path / "modal_train.py")))


def test_the_entrypoint_shows_its_flags_and_says_that_a_token_is_missing(tmp_path):
    environment = os.environ | {"MODAL_CONFIG_PATH": str(tmp_path / "none.toml"), "NO_COLOR": "1", "COLUMNS": "120"}
    run = [sys.executable, "-m", "modal", "run", str(SCRIPT)]
    shown = subprocess.run([*run, "--help"], capture_output=True, text=True, env=environment, timeout=120)
    for flag in (
        "--recipe",
        "--pack",
        "--dataset",
        "--gpu",
        "--num-gpus",
        "--push-to-hub",
        "--resume",
        "--download-to",
    ):
        assert flag in shown.stdout, shown.stderr
    refused = subprocess.run(run, capture_output=True, text=True, env=environment, timeout=120)
    assert refused.returncode == 1
    assert "Token missing" in refused.stdout + refused.stderr


@pytest.mark.parametrize(("num_gpus", "config"), [(0, "cpu"), (1, "one_gpu"), (4, "eight_gpus"), (8, "eight_gpus")])
def test_training_is_launched_on_as_many_gpus_as_asked_for(script, num_gpus, config):
    flags = [*recipe_flags("laptop", "/packs/mine"), "--seed", "3"]
    command = training_command(TRAIN, Path("/outputs/run"), num_gpus=num_gpus, flags=flags)
    text = " ".join(command)
    assert f"configs/accelerate/{config}.yaml" in text
    assert ("--use_cpu" in command) == (num_gpus == 0)
    assert (f"--num_processes {num_gpus}" in text) == (num_gpus > 1)
    assert text.endswith("--seed 3")
    for flag in ("--recipe laptop", "--output_dir /outputs/run", "--resume", "--dataset /packs/mine"):
        assert flag in text


def test_the_flags_are_those_of_the_training_script(script):
    from qwen_term_retrieval.runs.recipes import parse_recipe
    from qwen_term_retrieval.training.arguments import TERM_RETRIEVAL

    flags = [*recipe_flags("demo", "packs/mine"), *hub_flags(True, "me/model")]
    command = training_command(TRAIN, Path("out"), num_gpus=0, flags=flags)
    _, data, training = parse_recipe(TERM_RETRIEVAL, RECIPES, command[command.index(str(TRAIN)) + 1 :])
    assert (data.dataset, training.output_dir) == ("packs/mine", "out")
    assert training.resume
    assert training.use_cpu
    assert (training.push_to_hub, training.hub_model_id, training.hub_strategy) == (True, "me/model", "checkpoint")
    assert hub_flags(False, "") == []


def test_the_body_trains_commits_and_returns_the_metrics(repository, tmp_path):
    commits = []
    metrics = launch_training(
        repository / "scripts" / "train.py", tmp_path / "outputs" / "run", num_gpus=0,
        commit=lambda: commits.append(len(list((tmp_path / "outputs").glob("run/*")))), commit_seconds=0.05,
    )  # fmt: skip
    assert metrics == {"test_recall@10": 0.9, "resumed_from": 0}
    assert len(commits) > 1
    assert commits[-1] == 3


def test_a_run_that_was_taken_away_goes_on_from_its_last_whole_checkpoint(repository, tmp_path):
    body = {"script": repository / "scripts" / "train.py", "output_dir": tmp_path / "run", "num_gpus": 0}
    with pytest.raises(TrainingFailedError, match="training failed with exit code 1") as failed:
        launch_training(flags=["--fail"], **body)
    assert failed.value.progressed
    (tmp_path / "run" / "checkpoint-20").mkdir()  # the container went while this was being written
    (tmp_path / "run" / "checkpoint-20" / "trainer_state.json").write_text('{"global_st')
    assert launch_training(**body)["resumed_from"] == 10


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are listed in /proc on Linux only")
def test_an_interrupted_container_stops_training_and_keeps_what_it_wrote(repository, tmp_path):
    commits = []

    def commit():
        commits.append(sorted(path.name for path in tmp_path.glob("run/*")))
        if commits.count(["checkpoint-10"]) == 1 and commits[-1]:
            raise KeyboardInterrupt  # how Modal says that a container will be taken away

    def is_training():
        for process in Path("/proc").glob("[0-9]*"):
            # A process may end between being listed and being read.
            with contextlib.suppress(OSError):
                if f"{repository}/scripts/train.py".encode() in (process / "cmdline").read_bytes():
                    return True
        return False

    body = {"script": repository / "scripts" / "train.py", "output_dir": tmp_path / "run", "num_gpus": 0}
    with pytest.raises(KeyboardInterrupt):
        launch_training(flags=["--sleep"], commit=commit, commit_seconds=0.2, **body)
    assert commits[-1] == ["checkpoint-10"]
    deadline = time.monotonic() + 10
    while is_training() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_training()


def test_an_error_without_progress_is_returned_and_so_not_tried_again(script, repository, tmp_path, monkeypatch):
    monkeypatch.setattr(modal_containers, "OUTPUTS", str(tmp_path))
    monkeypatch.setattr(modal_containers, "REMOTE_REPOSITORY", repository)
    for name in ("outputs", "cache"):
        monkeypatch.setattr(modal_containers, name, Volume(tmp_path))
    answer = script.train.local("run", 0, ["--fail-at-once"])
    assert answer == {"error": "training failed with exit code 1; see its messages above"}
    with pytest.raises(TrainingFailedError):
        script.train.local("run", 0, ["--fail"])


class Volume:
    """A Modal Volume's calls on a local folder: the network's edge."""

    def __init__(self, root):
        self.root = root

    def read_file(self, path):
        if not (self.root / path).is_file():
            raise FileNotFoundError(path)
        yield (self.root / path).read_bytes()

    def listdir(self, path, recursive=False):
        kinds = modal.volume.FileEntryType
        folder = self.root / path.lstrip("/")
        for found in folder.rglob("*") if recursive else folder.iterdir():
            kind = kinds.FILE if found.is_file() else kinds.DIRECTORY
            yield SimpleNamespace(path=found.relative_to(self.root).as_posix(), type=kind)

    def commit(self):
        pass

    def remove_file(self, path, recursive=False):
        assert recursive
        shutil.rmtree(self.root / path)

    def batch_upload(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def put_file(self, local, remote):
        target = self.root / remote.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(local, target)


def test_an_earlier_run_is_gone_on_with_or_deleted_once_before_its_container_starts(tmp_path):
    (tmp_path / "first" / "checkpoint-10").mkdir(parents=True)
    volume, flags = Volume(tmp_path), ["--seed", "3", "--overwrite"]
    with pytest.raises(ValueError, match="'first' already: --resume goes on with it, --flags=--overwrite deletes it"):
        claim_run(volume, "first", ["--seed", "3"], resume=False)
    with pytest.raises(ValueError, match="give one of the two"):
        claim_run(volume, "first", flags, resume=True)
    assert claim_run(volume, "first", ["--seed", "3"], resume=True) == ["--seed", "3"]
    assert (tmp_path / "first").exists()
    # Without the flag: a container that is started again would delete its own checkpoints.
    assert claim_run(volume, "first", flags, resume=False) == ["--seed", "3"]
    assert not (tmp_path / "first").exists()
    assert claim_run(volume, "first", flags, resume=False) == ["--seed", "3"]


def test_a_model_of_this_machine_is_refused_before_anything_is_rented():
    with pytest.raises(ValueError, match=r"the model outputs/laptop lies on this machine .*--model /outputs/"):
        check_model_is_there(RECIPES / "laptop_lora.yaml", [])
    with pytest.raises(ValueError, match="outputs/mine lies on this machine"):
        check_model_is_there(RECIPES / "demo.yaml", ["--seed", "3", "--model", "outputs/mine"])
    check_model_is_there(RECIPES / "laptop_lora.yaml", ["--model", "/outputs/laptop"])
    check_model_is_there(RECIPES / "laptop_lora.yaml", ["--model", "me/laptop"])
    check_model_is_there(RECIPES / "demo.yaml", [])


def test_a_pack_is_uploaded_once_and_never_over_another(tmp_path):
    pack, volume = tmp_path / "mine", Volume(tmp_path / "volume")
    pack.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no pack\.json"):
        upload_pack(volume, pack)
    (pack / "pack.json").write_text('{"uuid": 1}')
    (pack / "shard_00000.dat").write_bytes(b"pcm")
    assert upload_pack(volume, pack) == "mine"
    assert (tmp_path / "volume" / "mine" / "shard_00000.dat").read_bytes() == b"pcm"

    (tmp_path / "volume" / "mine" / "shard_00000.dat").write_bytes(b"there")
    upload_pack(volume, pack)
    assert (tmp_path / "volume" / "mine" / "shard_00000.dat").read_bytes() == b"there"
    (pack / "pack.json").write_text('{"uuid": 2}')
    with pytest.raises(ValueError, match="another folder named 'mine'"):
        upload_pack(volume, pack)


def test_results_are_downloaded_without_checkpoints(tmp_path):
    run = tmp_path / "volume" / "run"
    (run / "checkpoint-10").mkdir(parents=True)
    (run / "checkpoint-10" / "model.safetensors").write_bytes(b"old")
    (run / "model.safetensors").write_bytes(b"new")
    (run / "all_results.json").write_text(json.dumps({}))
    folder = download_run(Volume(tmp_path / "volume"), "run", tmp_path / "here")
    assert sorted(path.name for path in folder.iterdir()) == ["all_results.json", "model.safetensors"]


class Rented:
    """A Modal function's calls: the network's edge."""

    def __init__(self, answer):
        self.answer = answer

    def with_options(self, **options):
        self.options = options
        return self

    def remote(self, *args):
        self.args = args
        return self.answer


def test_a_run_gets_the_hardware_and_the_secret_that_it_asks_for(capsys):
    function = Rented({"test_recall@10": 0.9})
    rent(function, "first", ["--seed", "3"], gpu="H100", num_gpus=2, secret="huggingface-secret")
    (secret,) = function.options.pop("secrets")
    assert isinstance(secret, modal.Secret)
    assert function.options == {"gpu": "H100:2", "cpu": 8, "memory": 32 * 1024}
    assert function.args == ("first", 2, ["--seed", "3"])
    assert json.loads(capsys.readouterr().out) == {"test_recall@10": 0.9}
    with pytest.raises(SystemExit, match="exit code 3"):
        rent(Rented({"error": "training failed with exit code 3"}), "first", [], gpu="H100", num_gpus=2)
