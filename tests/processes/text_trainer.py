"""Small text pre-trainings on one rank, on two and on three, and one that is killed again and again.

python tests/processes/text_trainer.py DATASET OUTPUT_DIR LIVES

All processes are forked from one that has loaded everything. Each of `CASES` leaves `<name>-<ranks>.safetensors`, and
of each rank `<name>-<ranks>-<rank>.json`. LIVES is JSON, `[{"step", "seconds"}, …]`: a run in `killed` goes on from its
last whole checkpoint, and is killed by SIGKILL so long after that step began, for each of them; then it may end, as one
in `calm` does from the start. How the lives ended goes to `ends.json`.
"""

import gc
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from qwen_term_retrieval.distributed import end_ranks, world_size
from qwen_term_retrieval.models.flops import peak_flops
from qwen_term_retrieval.pretraining.text.architectures import build_model
from qwen_term_retrieval.pretraining.text.arguments import TextModelArguments, TextPretrainingArguments
from qwen_term_retrieval.pretraining.text.run import open_prepared
from qwen_term_retrieval.pretraining.text.trainer import TextPretrainingTrainer
from qwen_term_retrieval.runs.checkpoints.resuming import last_whole_checkpoint
from qwen_term_retrieval.trainer_callbacks import TokenThroughputCallback

RANKS = (1, 2, 3)
GLOBAL_BATCH = 12
CASES = {
    "t5": {"gradient_accumulation_steps": 2},
    "qwen3": {"architecture": "qwen3", "loss_on": "all", "row_length": 96},
}
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 2, "dropout": 0.0}
KILLED = {
    "max_steps": 24, "save_strategy": "steps", "save_steps": 2, "eval_steps": 2, "load_best_model_at_end": True,
    "save_total_limit": 3, "optim": "adamw_torch", "learning_rate": 1e-3, "lr_scheduler_type": "cosine",
    "warmup_steps": 5, "max_grad_norm": 1.0, "dropout": 0.1, "gradient_accumulation_steps": 2, "max_eval_pairs": 16,
}  # fmt: skip


def make_trainer(dataset, output_dir, batch_size, *, dtype=torch.float32, **settings):
    """A trainer of a tiny model; settings of the model and of the run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    own = {name: settings.pop(name) for name in (*SMALL, "architecture") if name in settings}
    args = TextPretrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=batch_size,
        **{
            "use_cpu": True,
            "max_seq_len": 32,
            "row_length": 128,
            "pool_batches": 8,
            "max_steps": 3,
            "learning_rate": 0.05,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "gradient_accumulation_steps": 1,
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "save_strategy": "no",
            "load_best_model_at_end": False,
            "logging_steps": 1,
            "num_generations": 0,
            "disable_tqdm": True,
            "report_to": "none",
            "check_memory": False,
            **settings,
        },
    )
    train, valid, tokenizer = open_prepared(dataset, args.max_seq_len)
    model = build_model(TextModelArguments(**{**SMALL, **own}), tokenizer).to(dtype)
    return TextPretrainingTrainer(model, args, train, valid, tokenizer=tokenizer, callbacks=[TokenThroughputCallback()])


def weights(trainer):
    return {name: values.detach().clone() for name, values in trainer.text_model.named_parameters()}


def run_cases(dataset, folder, ranks, rank):
    for name, settings in CASES.items():
        trainer = make_trainer(
            dataset, folder / f"{name}-{ranks}", GLOBAL_BATCH // ranks, dtype=torch.float64, **settings
        )
        tokens, plain = [], trainer.compute_loss

        def counted(model, inputs, plain=plain, tokens=tokens, **kwargs):
            tokens.append(int((inputs["labels"] >= 0).sum()))
            return plain(model, inputs, **kwargs)

        trainer.compute_loss = counted
        trainer.train()
        found = {"history": trainer.state.log_history, "world_size": world_size(), "tokens": tokens}
        (folder / f"{name}-{ranks}-{rank}.json").write_text(json.dumps(found))
        if rank == 0:
            save_file(weights(trainer), folder / f"{name}-{ranks}.safetensors")


class KillAt(TrainerCallback):
    """SIGKILL to its own process, some seconds after a step began."""

    def __init__(self, step, seconds):
        self.step, self.seconds, self.is_set = step, seconds, False

    def on_step_begin(self, args, state, control, **kwargs):
        # The life before may have come further than this step.
        if state.global_step >= self.step and not self.is_set:
            self.is_set = True
            threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def on_train_end(self, args, state, control, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)


def live(dataset, folder, kill):
    trainer = make_trainer(dataset, folder, 8, **KILLED)
    if kill is not None:
        trainer.add_callback(KillAt(**kill))
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
    trainer.save_model()


def forked(*tasks):
    """Do each task in a process of its own, all at the same time; how each ended: 0, or minus the signal."""
    children = []
    for task in tasks:
        if child := os.fork():
            children.append(child)
            continue
        try:
            task()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def on_ranks(dataset, folder, ranks):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def on_rank(rank):
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        run_cases(dataset, folder, ranks, rank)

    return forked(*(lambda rank=rank: on_rank(rank) for rank in range(ranks)))


def main(dataset, output_dir, lives):
    folder = Path(output_dir)
    peak_flops("cpu", torch.float32), peak_flops("cpu", torch.float64)  # measured once, not in every child
    gc.freeze()  # what is loaded is not walked through by every child
    ends = {f"ranks-{ranks}": on_ranks(dataset, folder, ranks) for ranks in RANKS}
    ends["calm"] = forked(lambda: live(dataset, folder / "calm", None))
    ends["killed"] = [forked(lambda kill=kill: live(dataset, folder / "killed", kill))[0] for kill in json.loads(lives)]
    ends["ended"] = forked(lambda: live(dataset, folder / "killed", None))
    (folder / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_ranks()
