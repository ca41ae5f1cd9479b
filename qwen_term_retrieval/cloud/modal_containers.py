"""What a Modal container that trains is made of, and what it does: image, Volumes, hardware, retries.

Checkpoints are committed to a Volume while a run goes on; a container that Modal takes away is started again and goes
on from the last whole checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import modal

from qwen_term_retrieval.cloud.launching import TrainingFailedError, launch_training

REMOTE_REPOSITORY = "/opt/qwen_term_retrieval"
PACKS, OUTPUTS, CACHE = "/packs", "/outputs", "/cache"
GPU, NUM_GPUS = "A100-40GB", 8
LEFT_OUT = [
    *(".git", ".venv", ".*_cache", "**/__pycache__", "*.egg-info", "build", "dist"),
    *("data", "outputs", "packs", "indexes"),
]


def _volume(name: str) -> modal.Volume:
    return modal.Volume.from_name(f"qwen-term-retrieval-{name}", create_if_missing=True, version=2)


packs, outputs, cache = _volume("packs"), _volume("outputs"), _volume("cache")


def container(repository: Path) -> dict[str, Any]:
    """The settings of `app.function` for training from this repository, with all that `constraints.txt` names."""
    image = (
        modal.Image.debian_slim(python_version="3.12")
        .uv_pip_install(requirements=[str(repository / "constraints.txt")])
        .env({"HF_HOME": f"{CACHE}/huggingface", "TOKENIZERS_PARALLELISM": "false"})
        .add_local_dir(repository, REMOTE_REPOSITORY, copy=True, ignore=LEFT_OUT)
        .run_commands(f"python -m pip install --no-deps --editable {REMOTE_REPOSITORY}")
    )
    return {
        "image": image,
        **hardware(GPU, NUM_GPUS),
        "timeout": 24 * 3600,
        "retries": modal.Retries(max_retries=10, initial_delay=0.0, backoff_coefficient=1.0),
        "single_use_containers": True,
        "volumes": {PACKS: packs.read_only(), OUTPUTS: outputs, CACHE: cache},
    }


def hardware(gpu: str, num_gpus: int) -> dict[str, Any]:
    """GPUs, and the cores and the memory (MiB) that so many of them are fed with."""
    return {"gpu": f"{gpu}:{num_gpus}", "cpu": 4 * num_gpus, "memory": 16 * 1024 * num_gpus}


def train_in_container(script: str, run_name: str, num_gpus: int, flags: Sequence[str]) -> dict[str, Any]:
    """Run a script of `scripts/`, and return its metrics, or `{"error": …}` where a retry would end no better."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def commit() -> None:
        outputs.commit()
        cache.commit()

    path, output_dir = Path(REMOTE_REPOSITORY, "scripts", script), Path(OUTPUTS, run_name)
    try:
        return launch_training(path, output_dir, num_gpus=num_gpus, flags=flags, commit=commit)
    except TrainingFailedError as error:
        # Worth a retry only where that starts from somewhere new: ten times the same error would be ten times the bill.
        if error.progressed:
            raise
        return {"error": str(error)}
