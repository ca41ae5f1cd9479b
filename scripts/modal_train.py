"""Train on rented GPUs: `scripts/train.py` in a Modal container, with packs and checkpoints on Volumes.

    modal run scripts/modal_train.py                                          # the demo recipe on one A100
    modal run --detach scripts/modal_train.py --recipe qwen2_audio --num-gpus 8 --pack packs/mine
    modal run scripts/modal_train.py --run-name first --resume                # go on, or fetch what is done
    modal run scripts/modal_train.py --run-name first --flags=--overwrite     # start anew

The pack is uploaded once. Checkpoints are committed to a Volume while the run goes on; a container that Modal takes
away is started again and goes on from the last whole checkpoint. The results are downloaded at the end. Once:
`pip install 'qwen_term_retrieval[modal]'`, `modal setup` and, to push to the Hub or to read private repositories,
`modal secret create huggingface-secret HF_TOKEN=hf_…`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import modal
import yaml

logger = logging.getLogger("modal_train")

REPOSITORY = Path(__file__).resolve().parent.parent
REMOTE_REPOSITORY = "/opt/qwen_term_retrieval"
PACKS, OUTPUTS, CACHE = "/packs", "/outputs", "/cache"
GPU, NUM_GPUS = "A100-40GB", 8
COMMIT_SECONDS = 300
LEFT_OUT = [".git", ".venv", ".*_cache", "**/__pycache__", "*.egg-info", "build", "dist", "outputs", "packs", "indexes"]

image = (
    modal.Image.debian_slim(python_version="3.12")
    .uv_pip_install(requirements=[str(REPOSITORY / "constraints.txt")])
    .env({"HF_HOME": f"{CACHE}/huggingface", "TOKENIZERS_PARALLELISM": "false"})
    .add_local_dir(REPOSITORY, REMOTE_REPOSITORY, copy=True, ignore=LEFT_OUT)
    .run_commands(f"python -m pip install --no-deps --editable {REMOTE_REPOSITORY}")
)
packs = modal.Volume.from_name("qwen-term-retrieval-packs", create_if_missing=True, version=2)
outputs = modal.Volume.from_name("qwen-term-retrieval-outputs", create_if_missing=True, version=2)
cache = modal.Volume.from_name("qwen-term-retrieval-cache", create_if_missing=True, version=2)
app = modal.App("qwen-term-retrieval-train")


class TrainingFailedError(RuntimeError):
    """Training ended with an error; `progressed` tells whether a new checkpoint was written before."""

    def __init__(self, returncode: int, *, progressed: bool):
        super().__init__(f"training failed with exit code {returncode}; see its messages above")
        self.progressed = progressed


# ---- in the container ---------------------------------------------------------------------------------------------


def training_command(
    repository: Path, output_dir: Path, *, num_gpus: int, recipe: str, dataset: str | None, flags: Sequence[str] = ()
) -> list[str]:
    """How the training script is launched: on `num_gpus` GPUs of this machine, or on the CPU where it is 0."""
    config = "cpu" if num_gpus == 0 else "one_gpu" if num_gpus == 1 else "eight_gpus"
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(repository / "configs" / "accelerate" / f"{config}.yaml")]
    if num_gpus > 1:
        launch += ["--num_processes", str(num_gpus)]
    script = [str(repository / "scripts" / "train.py"), "--recipe", recipe, "--output_dir", str(output_dir), "--resume"]
    if dataset:
        script += ["--dataset", dataset]
    if num_gpus == 0:
        script.append("--use_cpu")
    return [*launch, *script, *flags]


def run_training(
    run_name: str,
    *,
    outputs_root: str,
    repository: str,
    recipe: str = "demo",
    dataset: str | None = None,
    num_gpus: int = NUM_GPUS,
    flags: Sequence[str] = (),
    commit: Callable[[], None] = lambda: None,
    commit_seconds: float = COMMIT_SECONDS,
) -> dict[str, float]:
    """What the container does: launch training, commit what it writes as it goes, return its metrics.

    Called again after a preemption, it goes on from the last whole checkpoint of `run_name`.

    Raises:
        TrainingFailedError: what training wrote is committed, and its messages are in the log.
    """
    # Not above: on your machine this would load torch to start a container.
    from qwen_term_retrieval.training.run import last_whole_checkpoint

    output_dir = Path(outputs_root) / run_name
    checkpoint = last_whole_checkpoint(output_dir)
    logger.info("%s: %s", run_name, f"going on from {checkpoint}" if checkpoint else "starting")
    command = training_command(
        Path(repository), output_dir, num_gpus=num_gpus, recipe=recipe, dataset=dataset, flags=flags
    )
    logger.info("%s", shlex.join(command))
    # A group of its own: accelerate's launcher does not pass signals on to the process that trains (1.15).
    process = subprocess.Popen(command, cwd=repository, start_new_session=True)
    try:
        committed = time.monotonic()
        while process.poll() is None:
            time.sleep(min(1.0, commit_seconds))
            if time.monotonic() - committed >= commit_seconds:
                commit()
                committed = time.monotonic()
    finally:
        # Modal interrupts a container it is about to take away; whatever is on disk by then is kept.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
        commit()
    if process.returncode:
        raise TrainingFailedError(process.returncode, progressed=last_whole_checkpoint(output_dir) != checkpoint)
    results = output_dir / "all_results.json"
    return json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}


@app.function(
    image=image,
    gpu=f"{GPU}:{NUM_GPUS}",
    cpu=32,
    memory=128 * 1024,
    timeout=24 * 3600,
    retries=modal.Retries(max_retries=10, initial_delay=0.0, backoff_coefficient=1.0),
    single_use_containers=True,
    volumes={PACKS: packs.read_only(), OUTPUTS: outputs, CACHE: cache},
)
def train(run_name: str, recipe: str, dataset: str | None, num_gpus: int, flags: list[str]) -> dict[str, Any]:
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def commit() -> None:
        outputs.commit()
        cache.commit()

    try:
        return run_training(
            run_name,
            outputs_root=OUTPUTS,
            repository=REMOTE_REPOSITORY,
            recipe=recipe,
            dataset=dataset,
            num_gpus=num_gpus,
            flags=flags,
            commit=commit,
        )
    except TrainingFailedError as error:
        # Worth a retry only where that starts from somewhere new: ten times the same error would be ten times the bill.
        if error.progressed:
            raise
        return {"error": str(error)}


# ---- on your machine ----------------------------------------------------------------------------------------------


@app.local_entrypoint()
def main(
    recipe: str = "demo",
    run_name: str = "",
    pack: str = "",
    dataset: str = "",
    gpu: str = GPU,
    num_gpus: int = 1,
    flags: str = "",
    push_to_hub: bool = False,
    hub_model_id: str = "",
    hf_secret: str = "",
    resume: bool = False,
    download_to: str = "outputs/modal",
):
    """Upload a pack if one is given, train, and download the results.

    Flags: `--recipe` as of scripts/train.py; `--pack` a local pack folder, or `--dataset` a Hub id; `--flags` any more
    flags of scripts/train.py, in quotes; `--hf-secret` the Modal secret with HF_TOKEN (default huggingface-secret with
    `--push-to-hub`); `--resume` to go on with an earlier run of that name; `--download-to ''` to download nothing.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if pack and dataset:
        raise ValueError("give --pack (a local folder) or --dataset (a Hub id), not both")
    run_name = run_name or f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    training_flags = shlex.split(flags)
    check_model_is_there(recipe, training_flags)
    training_flags = claim_run(outputs, run_name, training_flags, resume)
    if pack:
        dataset = f"{PACKS}/{upload_pack(packs, Path(pack))}"
    secret = hf_secret or ("huggingface-secret" if push_to_hub else "")
    function = train.with_options(
        gpu=f"{gpu}:{num_gpus}",
        cpu=4 * num_gpus,
        memory=16 * 1024 * num_gpus,
        secrets=[modal.Secret.from_name(secret, required_keys=["HF_TOKEN"])] if secret else None,
    )
    metrics = function.remote(
        run_name, recipe, dataset or None, num_gpus, hub_flags(push_to_hub, hub_model_id) + training_flags
    )
    if "error" in metrics:
        raise SystemExit(metrics["error"])
    print(json.dumps(metrics, indent=2))
    if download_to:
        download_run(outputs, run_name, Path(download_to))


def check_model_is_there(recipe: str, flags: Sequence[str]) -> None:
    """Refuse a model to go on from that lies in a folder of this machine that the container does not get."""
    file = REPOSITORY / "configs" / "recipes" / f"{recipe}.yaml"
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--model", default=yaml.safe_load(file.read_text()).get("model") if file.is_file() else None)
    model = chooser.parse_known_args(flags)[0].model
    if model and PurePosixPath(model).parts[0] in LEFT_OUT:
        raise ValueError(
            f"the model {model} lies on this machine and is not uploaded: train it on Modal too, and give "
            f"--flags '--model {OUTPUTS}/ITS-RUN-NAME', or push it to the Hub and give its id there"
        )


def claim_run(volume: modal.Volume, run_name: str, flags: Sequence[str], resume: bool) -> list[str]:
    """The flags without `--overwrite`, which deletes an earlier run here: a container that is started again goes on.

    Raises:
        ValueError: there is such a run, and neither `resume` nor `--overwrite` was given; or both were.
    """
    overwrite = "--overwrite" in flags
    if resume and overwrite:
        raise ValueError("--resume goes on with an earlier run, --overwrite deletes it: give one of the two")
    if not resume and run_name in {entry.path.split("/")[0] for entry in volume.listdir("/")}:
        if not overwrite:
            raise ValueError(
                f"there is a run {run_name!r} already: --resume goes on with it, --flags=--overwrite deletes it, "
                "another --run-name leaves it"
            )
        volume.remove_file(run_name, recursive=True)
    return [flag for flag in flags if flag != "--overwrite"]


def hub_flags(push_to_hub: bool, hub_model_id: str) -> list[str]:
    """Flags of scripts/train.py for the Hub. Checkpoints go there too, so that a lost Volume loses little."""
    if not push_to_hub:
        return []
    model_id = ["--hub_model_id", hub_model_id] if hub_model_id else []
    return ["--push_to_hub", "--hub_strategy", "checkpoint", *model_id]


def upload_pack(volume: modal.Volume, pack: Path) -> str:
    """Put a pack on the Volume under its folder's name, unless it is there; return the name.

    Raises:
        FileNotFoundError: `pack` is no pack.
        ValueError: another pack has that name there.
    """
    manifest = pack / "pack.json"
    if not manifest.is_file():
        raise FileNotFoundError(f"{pack} holds no pack.json; make a pack with `qtr pack SOURCE {pack}`")
    name = pack.resolve().name
    try:
        there = b"".join(volume.read_file(f"{name}/pack.json"))
    except FileNotFoundError:
        there = b""
    if there == manifest.read_bytes():
        logger.info("pack %s is on the Volume already", name)
        return name
    if there:
        raise ValueError(f"the Volume holds another pack named {name!r}; rename the folder {pack}")
    logger.info("uploading %s", pack)
    with volume.batch_upload() as batch:
        for path in sorted(pack.rglob("*")):
            if path.is_file() and path != manifest:
                batch.put_file(path, f"/{name}/{path.relative_to(pack).as_posix()}")
    # Last, so that a broken upload is not taken for a pack.
    with volume.batch_upload() as batch:
        batch.put_file(manifest, f"/{name}/pack.json")
    return name


def download_run(volume: modal.Volume, run_name: str, target: Path) -> Path:
    """Fetch a run's model, metrics and history, without its checkpoints, to `target/run_name`."""
    for entry in volume.listdir(run_name, recursive=True):
        path = PurePosixPath(entry.path.lstrip("/"))
        if entry.type.name != "FILE" or any(part.startswith(("checkpoint-", ".push")) for part in path.parts):
            continue
        local = target / path
        local.parent.mkdir(parents=True, exist_ok=True)
        partial = local.with_name(f".{local.name}.part")
        with partial.open("wb") as file:
            for block in volume.read_file(entry.path):
                file.write(block)
        partial.rename(local)
    logger.info("downloaded to %s", target / run_name)
    return target / run_name
