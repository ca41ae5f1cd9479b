"""Several small training runs, one after the other, in one set of rank processes: starting them is what takes time.

torchrun --nproc_per_node 2 tests/processes/ranks.py OUTPUT_DIR

Each run of `CASES` leaves `<name>-<rank>.json` and, from rank 0, `<name>.safetensors` in the folder.
"""

import itertools
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from qwen_term_retrieval.distributed import end_ranks, rank, world_size
from qwen_term_retrieval.trainer_callbacks import NonFiniteStepsError, ThroughputCallback
from tests.processes.trainer import make_trainer

GLOBAL_BATCH = 16
# The group of ranks comes up with the first trainer.
RANKS = int(os.environ.get("WORLD_SIZE", "1"))


def neighbours(clip, step):
    return [(7 * clip + place) % 40 for place in range(4)]


MATRIX = {
    f"{loss}-{reduction}-{'chunks' if chunk else 'whole'}": {
        "loss": loss, "window_reduction": reduction, "gradcache_chunk": chunk,
        "no_term_weight": 0.5, "enable_hard_neg": True, "hard_negatives_of": neighbours, "learning_rate": 1e-3,
        # The softmax of -10 is so flat that ranks could differ without being seen.
        "sigmoid_bias": -2.0,
    }
    for loss, reduction, chunk in itertools.product(("infonce", "sigmoid"), ("argmax", "logsumexp"), (None, 3))
}  # fmt: skip
PLAIN = {"learning_rate": 1e-3, "no_term_weight": 0.5}
MINED = {"enable_hard_neg": True, "hard_neg_refresh_steps": 1, "hard_neg_phonetic_ratio": 0.3, **PLAIN}
BAD = {"bad_step": 1, "max_steps": 4, **PLAIN}
PLATEAU = {
    "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 9,
    "lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5, "eps": 0.0},
    "load_best_model_at_end": True, "patience": 3,
}  # fmt: skip
CASES = {
    **MATRIX,
    "lora": {"lora_r": 2, "max_steps": 2, **PLAIN},
    "lora-chunks": {"lora_r": 2, "max_steps": 2, "gradcache_chunk": 3, **PLAIN},
    "accumulated": {"gradient_accumulation_steps": 2, "max_steps": 2, **PLAIN},
    "accumulated-chunks": {"gradient_accumulation_steps": 2, "max_steps": 2, "gradcache_chunk": 5, **PLAIN},
    "mined": MINED,
    "mined-sigmoid-chunks": {**MINED, "loss": "sigmoid", "sigmoid_bias": -2.0, "gradcache_chunk": 3},
    "phonemes": {"phoneme_loss_weight": 0.5, "max_steps": 2, **PLAIN},
    "phonemes-chunks": {"phoneme_loss_weight": 0.5, "gradcache_chunk": 3, "max_steps": 2, **PLAIN},
    "phonemes-lonely": {"phoneme_loss_weight": 0.5, "lonely": True, "max_steps": 2, **PLAIN},
    "aliases": {
        **MINED,
        "aliases": True,
        "bank_negatives": 2,
        "window_reduction": "logsumexp",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": False,
    },
    "lonely-term": {**MINED, "lonely": True, "max_steps": 6},
    "durations": {"max_batch_seconds": 40.0, **PLAIN},
    "bad-loss": {"bad": "loss", **BAD},
    "bad-embedding": {"bad": "embedding", **BAD},
    "bad-embedding-chunks": {"bad": "embedding", "gradcache_chunk": 3, **BAD},
    "bad-gradient": {"bad": "gradient", **BAD},
    "bad-too-often": {"bad": "loss", **BAD, "bad_step": None, "max_nonfinite_steps": 2},
    # So small a learning rate that nothing improves after the first evaluation.
    "plateau": {**PLATEAU, "learning_rate": 1e-12},
}
# Rank 0 alone cannot be the one that decides.
BAD_RANK = 1


def run(name, output_dir, settings):
    settings = {"mixed": True, "max_steps": 3, "dtype": torch.float64, **settings}
    bad, bad_step = settings.pop("bad", None), settings.pop("bad_step", None)
    trainer = make_trainer(output_dir / name, GLOBAL_BATCH // RANKS, **settings)
    trainer.add_callback(ThroughputCallback())
    if bad is not None and rank() == min(BAD_RANK, world_size() - 1):
        spoil(trainer, bad, bad_step)
    found = {}
    try:
        trainer.train()
    except NonFiniteStepsError as error:
        found["error"] = str(error)
    return trainer, found | {
        "global_step": trainer.state.global_step,
        "history": trainer.state.log_history,
        "learning_rate": trainer._get_learning_rate(),
        "world_size": world_size(),
    }


def spoil(trainer, what, step):
    """Make a loss, an embedding or a gradient of one step (or of every step: None) NaN, on this rank alone."""

    def now():
        return step is None or trainer.state.global_step == step

    head = trainer.retrieval_model.audio_head
    if what == "loss":
        plain = trainer._loss_of
        trainer._loss_of = lambda *batch: plain(*batch) * (torch.nan if now() else 1)
    elif what == "embedding":
        head.register_forward_hook(lambda module, inputs, output: output * torch.nan if now() else output)
    else:
        head.weight.register_hook(lambda gradient: gradient * torch.nan if now() else gradient)


def trained_weights(trainer):
    named = trainer.retrieval_model.named_parameters()
    return {name: values.detach().clone() for name, values in named if values.requires_grad}


def main(output_dir):
    output_dir = Path(output_dir)
    for name, settings in CASES.items():
        trainer, found = run(name, output_dir, settings)
        (output_dir / f"{name}-{rank()}.json").write_text(json.dumps(found))
        if rank() == 0:
            save_file(trained_weights(trainer), output_dir / f"{name}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_ranks()
