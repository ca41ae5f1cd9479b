"""Runs on Modal, from your machine: a name claimed, a pack uploaded once, training started, the results downloaded."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import modal
import yaml

from qwen_term_retrieval.cloud.modal_containers import LEFT_OUT, OUTPUTS, PACKS, hardware, outputs, packs

logger = logging.getLogger(__name__)


def start_run(
    train: modal.Function,
    repository: Path,
    recipe: str,
    run_name: str,
    upload: Callable[[], str],
    *,
    flags: str,
    resume: bool,
    push_to_hub: bool,
    hub_model_id: str,
    hf_secret: str,
    gpu: str,
    num_gpus: int,
    download_to: str,
) -> None:
    """Claim a run, upload what it is trained on, and rent: what the entry points of all trainers do.

    Args:
        train: the app's function, see `rent`.
        repository: whose recipes these are.
        recipe: its name; a run without a name is called after it and the time.
        upload: gives the dataset as the container sees it; nothing for that of the recipe.
        flags: more of them for the script, as on a command line.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_name = run_name or f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    own_flags = shlex.split(flags)
    check_model_is_there(repository / "configs" / "recipes" / f"{recipe}.yaml", own_flags)
    own_flags = claim_run(outputs, run_name, own_flags, resume)
    rent(
        train,
        run_name,
        [*recipe_flags(recipe, upload()), *hub_flags(push_to_hub, hub_model_id), *own_flags],
        gpu=gpu,
        num_gpus=num_gpus,
        secret=hf_secret or ("huggingface-secret" if push_to_hub else ""),
        download_to=download_to,
    )


def recipe_flags(recipe: str, dataset: str = "") -> list[str]:
    """Flags of any training script."""
    return ["--recipe", recipe, *(["--dataset", dataset] if dataset else [])]


def pack_or_dataset(pack: str, dataset: str) -> Callable[[], str]:
    """What uploads a local pack, if one is given, and gives the dataset as the container sees it.

    Raises:
        ValueError: both are given.
    """
    if pack and dataset:
        raise ValueError("give --pack (a local folder) or --dataset (a Hub id), not both")
    return lambda: f"{PACKS}/{upload_pack(packs, Path(pack))}" if pack else dataset


def rent(
    train: modal.Function,
    run_name: str,
    flags: Sequence[str],
    *,
    gpu: str,
    num_gpus: int,
    secret: str = "",
    download_to: str = "",
) -> None:
    """Train in a container, print the metrics, and download the results to a folder of runs, if one is given.

    Args:
        train: the app's function of a run's name, the number of GPUs and flags: `train_in_container` is its body.
        secret: the Modal secret that holds HF_TOKEN, if any.

    Raises:
        SystemExit: training failed; its messages are in the log.
    """
    secrets = [modal.Secret.from_name(secret, required_keys=["HF_TOKEN"])] if secret else None
    metrics = train.with_options(**hardware(gpu, num_gpus), secrets=secrets).remote(run_name, num_gpus, list(flags))
    if "error" in metrics:
        raise SystemExit(metrics["error"])
    print(json.dumps(metrics, indent=2))
    if download_to:
        download_run(outputs, run_name, Path(download_to))


def check_model_is_there(recipe: Path, flags: Sequence[str]) -> None:
    """Refuse a model to go on from that lies in a folder of this machine that the container does not get."""
    own = yaml.safe_load(recipe.read_text()).get("model") if recipe.is_file() else None
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--model", default=own)
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
    return upload_folder(volume, pack, "pack.json", f"make a pack with `qtr pack SOURCE {pack}`")


def upload_folder(volume: modal.Volume, folder: Path, sign: str, remedy: str) -> str:
    """Put a folder on the Volume under its name, unless it is there; return the name.

    Args:
        sign: the file that tells a whole folder of its kind from others, by its bytes.
        remedy: what to do where there is none.

    Raises:
        FileNotFoundError: `folder` has no such file.
        ValueError: another folder has that name there.
    """
    manifest = folder / sign
    if not manifest.is_file():
        raise FileNotFoundError(f"{folder} holds no {sign}; {remedy}")
    name = folder.resolve().name
    try:
        there = b"".join(volume.read_file(f"{name}/{sign}"))
    except FileNotFoundError:
        there = b""
    if there == manifest.read_bytes():
        logger.info("%s is on the Volume already", name)
        return name
    if there:
        raise ValueError(f"the Volume holds another folder named {name!r}; rename the folder {folder}")
    logger.info("uploading %s", folder)
    with volume.batch_upload() as batch:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path != manifest:
                batch.put_file(path, f"/{name}/{path.relative_to(folder).as_posix()}")
    # Last, so that a broken upload is not taken for a whole folder.
    with volume.batch_upload() as batch:
        batch.put_file(manifest, f"/{name}/{sign}")
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
