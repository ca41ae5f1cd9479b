"""Launch a training script on a machine that may be taken away: what it writes is kept while it runs.

The script takes `--output_dir`, `--resume` and `--use_cpu`, and lies in `scripts/` of a repository.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

COMMIT_SECONDS = 300

logger = logging.getLogger(__name__)


class TrainingFailedError(RuntimeError):
    """Training ended with an error; `progressed` tells whether a new checkpoint was written before."""

    def __init__(self, returncode: int, *, progressed: bool):
        super().__init__(f"training failed with exit code {returncode}; see its messages above")
        self.progressed = progressed


def training_command(script: Path, output_dir: Path, *, num_gpus: int, flags: Sequence[str] = ()) -> list[str]:
    """How a training script is launched: on `num_gpus` GPUs of this machine, or on the CPU where it is 0."""
    config = "cpu" if num_gpus == 0 else "one_gpu" if num_gpus == 1 else "eight_gpus"
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(script.parents[1] / "configs" / "accelerate" / f"{config}.yaml")]
    if num_gpus > 1:
        launch += ["--num_processes", str(num_gpus)]
    on_cpu = ["--use_cpu"] if num_gpus == 0 else []
    return [*launch, str(script), "--output_dir", str(output_dir), "--resume", *on_cpu, *flags]


def launch_training(
    script: Path,
    output_dir: Path,
    *,
    num_gpus: int,
    flags: Sequence[str] = (),
    commit: Callable[[], None] = lambda: None,
    commit_seconds: float = COMMIT_SECONDS,
) -> dict[str, float]:
    """Launch training, commit what it writes as it goes, and return its metrics.

    Called again after a preemption, it goes on from the last whole checkpoint in `output_dir`.

    Raises:
        TrainingFailedError: what training wrote is committed, and its messages are in the log.
    """
    # Not above: on your machine this would load torch to start a container.
    from qwen_term_retrieval.runs.checkpoints.resuming import last_whole_checkpoint

    checkpoint = last_whole_checkpoint(output_dir)
    logger.info("%s: %s", output_dir.name, f"going on from {checkpoint}" if checkpoint else "starting")
    command = training_command(script, output_dir, num_gpus=num_gpus, flags=flags)
    logger.info("%s", shlex.join(command))
    # A group of its own: accelerate's launcher does not pass signals on to the process that trains (1.15).
    process = subprocess.Popen(command, cwd=script.parents[1], start_new_session=True)
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
