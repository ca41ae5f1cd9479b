"""Training runs that are killed at drawn moments and go on, in processes forked from one that has loaded everything.

python tests/processes/kills.py JOBS.json

A job is a list of lives of one run, `{"output_dir", "ranks", "batch_size", "settings", "kill"}`: each begins at the
last whole checkpoint, as `--resume` does, and ends by SIGKILL or, where `kill` is null, by itself, leaving `ended.json`
and `ended.safetensors` in its folder. `ends.json`, beside the jobs, says with which checkpoint each life began, and how
each rank ended.
"""

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from safetensors.torch import save_file
from transformers import EarlyStoppingCallback, TrainerCallback

from qwen_term_retrieval.runs.checkpoints.resuming import last_whole_checkpoint
from tests.processes.trainer import make_trainer

# Of the life, not of the run; the Trainer's `train_loss` is the mean since it went on.
OF_ONE_LIFE = ("runtime", "per_second", "train_loss")


class KillAt(TrainerCallback):
    """SIGKILL to its own process, some seconds after a step began, or at the end of a run that was faster."""

    def __init__(self, step, seconds):
        self.step, self.seconds = step, seconds

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def on_train_end(self, args, state, control, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)


def live(life, rank, checkpoint):
    """One rank of one life of a run."""
    folder = Path(life["output_dir"])
    trainer = make_trainer(folder, life["batch_size"], mixed=True, **life["settings"])
    if life["kill"] is not None and rank == life["kill"]["rank"]:
        trainer.add_callback(KillAt(life["kill"]["step"], life["kill"]["seconds"]))
    trainer.train(resume_from_checkpoint=checkpoint)
    if rank == 0:
        save_file(
            {name: values.data for name, values in trainer.model.named_parameters()}, folder / "ended.safetensors"
        )
        (folder / "ended.json").write_text(json.dumps(remembered(trainer)))


def remembered(trainer):
    """What the trainer knows of its run."""
    state = trainer.state
    patience = next(each for each in trainer.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback))
    return {
        "global_step": state.global_step,
        "best": [state.best_global_step, state.best_metric, Path(state.best_model_checkpoint).name],
        "evaluations_without_progress": patience.early_stopping_patience_counter,
        "learning_rate": trainer.lr_scheduler.get_last_lr(),
        "history": [
            {name: value for name, value in line.items() if not any(word in name for word in OF_ONE_LIFE)}
            for line in state.log_history
        ],
    }


def run(life):
    """All ranks of one life; its checkpoint, and how each rank ended: 0, or minus the signal."""
    checkpoint = last_whole_checkpoint(Path(life["output_dir"]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = {}
    for rank in range(life["ranks"]):
        if child := os.fork():
            children[child] = rank
            continue
        if life["ranks"] > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(life["ranks"])}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        try:
            live(life, rank, checkpoint)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    ends = {}
    while len(ends) < len(children):
        child, status = os.wait()
        ends[children[child]] = os.waitstatus_to_exitcode(status)
        if status:  # as torchrun has it: no rank outlives another
            for other, rank in children.items():
                if rank not in ends:
                    os.kill(other, signal.SIGKILL)
    return checkpoint and Path(checkpoint).name, [ends[rank] for rank in sorted(ends)]


def main(jobs_file):
    path = Path(jobs_file)
    ends = [[run(life) for life in job] for job in json.loads(path.read_text())]
    path.with_name("ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(*sys.argv[1:])
