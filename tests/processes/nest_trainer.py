"""Small audio pre-trainings on one rank and on two, and one that is killed again and again.

python tests/processes/nest_trainer.py OUTPUT_DIR LIVES

All processes are forked from one that has loaded everything. Each of `CASES` leaves `<name>-<ranks>.safetensors`, and
of each rank `<name>-<ranks>-<rank>.json`. LIVES is JSON, `[{"step", "seconds"}, …]`: a run in `killed` goes on from its
last whole checkpoint, and is killed by SIGKILL so long after that step began, for each of them; then it may end, as one
in `calm` does from the start. How the lives ended goes to `ends.json`.
"""

import gc
import json
import os
import socket
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import save_file

from qwen_term_retrieval.distributed import end_ranks, rank, world_size
from qwen_term_retrieval.models.flops import peak_flops
from qwen_term_retrieval.pretraining.audio.first_head import begin_at_frequencies
from qwen_term_retrieval.runs.checkpoints.resuming import last_whole_checkpoint
from tests.doubles.tiny_nest import tiny_nest, tiny_trainer
from tests.processes.text_trainer import KillAt, forked

RANKS = (1, 2)
GLOBAL_BATCH = 4
# Without `min_blocks` most clips of a second have nothing hidden: of two clips a rank, often none.
UNEVEN = {"min_blocks": 0, "mask_probability": 0.01, "num_books": 2}
CASES = {
    "uneven": {"model": UNEVEN, "gradient_accumulation_steps": 2, "max_steps": 4},
    "nothing": {"model": {"min_blocks": 0, "mask_probability": 0.0}, "max_steps": 2, "weight_decay": 0.0},
    "nan": {"model": {}, "max_steps": 4},
}
KILLED = {
    "max_steps": 12, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2,
    "load_best_model_at_end": True, "save_total_limit": 3, "lr_scheduler_type": "inverse_sqrt", "warmup_steps": 4,
    "learning_rate": 3e-3, "gradient_accumulation_steps": 2, "max_eval_clips": 8,
}  # fmt: skip


def poison(trainer, step):
    """Let the last rank hear what is no number in one step."""
    plain = trainer.compute_loss

    def poisoned(model, inputs, **kwargs):
        if trainer.state.global_step == step and rank() == world_size() - 1:
            inputs = {**inputs, "noisy_pcm_BS": torch.full(inputs["pcm_BS"].shape, torch.nan)}
        return plain(model, inputs, **kwargs)

    trainer.compute_loss = poisoned


def run_cases(folder, ranks, number):
    for name, case in CASES.items():
        settings = {"eval_strategy": "steps", "eval_steps": case["max_steps"], "max_eval_clips": 8, **case}
        model = tiny_nest(**settings.pop("model"))
        trainer = tiny_trainer(
            folder / f"{name}-{ranks}", GLOBAL_BATCH // ranks, model=model, dtype=torch.float64, **settings
        )
        if name == "nan":
            poison(trainer, 1)
        if name == "uneven":
            begin_at_frequencies(trainer.nest_model, trainer.train_clips)
        hidden, plain = [], trainer.train_clips.num_masked

        def counted(batch, plain=plain, hidden=hidden):
            hidden.append(int(plain(batch)))
            return plain(batch)

        trainer.train_clips.num_masked = counted
        trainer.train()
        found = {"history": trainer.state.log_history, "world_size": world_size(), "hidden": hidden}
        (folder / f"{name}-{ranks}-{number}.json").write_text(json.dumps(found))
        if number == 0:
            state = {key: values.clone() for key, values in trainer.nest_model.state_dict().items()}
            save_file(state, folder / f"{name}-{ranks}.safetensors")


def live(folder, kill):
    model = tiny_nest(encoder={"dropout": 0.1, "attention_dropout": 0.1})
    settings = {"clip_settings": {"augmentation": {"speed_prob": 0.5, "noise_prob": 0.8}}, **KILLED}
    trainer = tiny_trainer(folder, 4, model=model, **settings)
    if kill is not None:
        trainer.add_callback(KillAt(**kill))
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
    trainer.save_model()


def on_ranks(folder, ranks):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def on_rank(number):
        if ranks > 1:
            os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(ranks)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        run_cases(folder, ranks, number)

    return forked(*(lambda number=number: on_rank(number) for number in range(ranks)))


def main(output_dir, lives):
    folder = Path(output_dir)
    peak_flops("cpu", torch.float32), peak_flops("cpu", torch.float64)  # measured once, not in every child
    gc.freeze()  # what is loaded is not walked through by every child
    ends = {f"ranks-{ranks}": on_ranks(folder, ranks) for ranks in RANKS}
    ends["calm"] = forked(lambda: live(folder / "calm", None))
    ends["killed"] = [forked(lambda kill=kill: live(folder / "killed", kill))[0] for kill in json.loads(lives)]
    ends["ended"] = forked(lambda: live(folder / "killed", None))
    (folder / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_ranks()
