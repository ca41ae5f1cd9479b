"""Training and searching on a pretended GPU; see `pretend_gpu`.

python tests/processes/gpu.py OUTPUT_DIR

Leaves `done.json`: for each case the error that it ended with, or null, and what it gave there and on the CPU.
"""

import json
import os
import sys
import traceback
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import numpy as np
import torch
from accelerate.state import PartialState

from qwen_term_retrieval.evaluation.evaluator import RetrievalEvaluator
from qwen_term_retrieval.retrieval.calibration import calibrate
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from tests.doubles.pretend_gpu import DeviceError, pretend_gpu
from tests.doubles.tiny_trainer import make_tiny_trainer, tiny_model

ROOT = Path(__file__).parents[2]
MINED = {"enable_hard_neg": True, "hard_neg_k": 2, "hard_neg_refresh_steps": 2}
TRAININGS = {
    "plain": {},
    "frozen": {"frozen": True},
    "mined": {**MINED, "hard_neg_phonetic_ratio": 0.5, "contrastive_batch_size": 8, "gradcache_chunk": 4},
    "frozen and mined": {**MINED, "frozen": True},
    "sigmoid": {"loss": "sigmoid", **MINED},
    "soft windows": {"window_reduction": "logsumexp", "bank_negatives": 2, "no_term_weight": 0.1},
    "distorted": {"augmentation": {}, "activation_checkpointing": True, "max_batch_seconds": 20.0},
    "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
}


def train(folder, device, **settings):
    """The losses of a run of two steps, and its evaluation."""
    settings |= {"num_train_epochs": 1, "save_strategy": "no", "load_best_model_at_end": False}
    settings_made = TermRetrievalArguments.__post_init__

    def on_the_device(args):
        settings_made(args)
        if device is not None:
            # As if accelerate had found it.
            args.__dict__["_setup_devices"] = device
            PartialState._shared_state["device"] = device

    TermRetrievalArguments.__post_init__ = on_the_device
    try:
        trainer = make_tiny_trainer(folder, **settings)
        trainer.train()
    finally:
        TermRetrievalArguments.__post_init__ = settings_made
        PartialState._reset_state()
    assert device is None or trainer.retrieval_model.device == device
    return [entry[name] for entry in trainer.state.log_history for name in ("loss", "eval_mrr") if name in entry]


def search(device):
    """All that a retriever and an evaluator do."""
    rows = datasets.load_dataset(str(ROOT / "builders/term_audio"))["validation"].select(range(8))
    model = tiny_model(windows={"sizes": [20, 40], "stride": 10}, audio_layers=1, lora={"r": 2})
    retriever = TermRetriever.from_pretrained(model, device=device)
    retriever.index([*{term for terms in rows["terms"] for term in terms}, "sepsis", "Paris"])
    retriever.add_terms(["London"])
    retriever.remove_terms(["sepsis"])
    found = retriever.search_batch(rows["audio"], top_k=3)
    second = np.random.default_rng(0).integers(-3000, 3000, 16_000).astype(np.int16)
    heard = list(retriever.stream([second] * 4, threshold=-1.0, top_k=2))
    calibrate(retriever, rows)
    metrics = RetrievalEvaluator(rows, distractors=["Berlin", "Rome"])(retriever, show_progress=False)
    return [match.score for matches in found for match in matches], [match.score for match in heard], metrics["mrr"]


def check_strictness(device):
    """What CUDA refuses is refused, else nothing here would show anything."""
    there, here = torch.ones(3, device=device), torch.ones(3)
    for forbidden in (
        lambda: there + here,
        lambda: torch.cat([there, here]),
        lambda: here[there.long()],
        lambda: there.numpy(),
    ):
        try:
            forbidden()
        except (DeviceError, RuntimeError, TypeError):
            continue
        raise AssertionError("the pretended GPU took a tensor of the CPU")
    assert (there * torch.tensor(2.0))[torch.tensor([0, 1])].device == device


def main(folder):
    with pretend_gpu() as device:
        check_strictness(device)
    done = {name: case(partial(train, folder, **settings)) for name, settings in TRAININGS.items()}
    done["searching"] = case(search)
    (folder / "done.json").write_text(json.dumps(done))


def case(run):
    """What a run gives on the pretended GPU and on the CPU, or how it ended."""
    try:
        with pretend_gpu() as device:
            there = run(device)
        return {"error": None, "there": there, "here": run(None)}
    except Exception:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
