"""Part `data`: what share of a training step the demo recipe waits for its data, end to end through the trainer.

The recipe as it stands (frozen Whisper-tiny.en, its frames read from the cache on disk, windows, mined hard negatives)
on the demo corpus. Waiting is the time in which the loop asks for its batches, `data_wait_share` of
`ThroughputCallback`: for what the recipe's worker has not built by then (reading frames, drawing, tokenizing, padding)
and for taking it over. The first batches of an epoch are always waited for. Mining and computing the cache lie between
steps.
"""

from __future__ import annotations

import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from benchmarks.profiles import top_functions
from benchmarks.training.measure import PROFILED_OPERATORS, device_name, verdict
from qwen_term_retrieval.runs.recipes import RECIPES, parse_recipe
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.trainer_callbacks import ThroughputCallback
from qwen_term_retrieval.training.arguments import TERM_RETRIEVAL
from qwen_term_retrieval.training.run import build_model, checked_rows
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer

BELOW = 0.03


def run(device: torch.device, *, num_steps: int = 180) -> dict[str, Any]:
    """The share over so many steps of the demo recipe; by default its 30 epochs of six."""
    with tempfile.TemporaryDirectory() as folder:
        return measure_wait(demo_trainer(Path(folder), device, num_steps), device)


def demo_trainer(folder: Path, device: torch.device, num_steps: int) -> TermRetrievalTrainer:
    flags = ["--recipe", "demo", "--output_dir", str(folder), "--max_steps", str(num_steps)]
    flags += ["--eval_strategy", "no", "--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true"]
    # One log line for all steps.
    flags += ["--logging_steps", str(num_steps), "--use_cpu", str(device.type == "cpu")]
    model_args, data_args, args = parse_recipe(TERM_RETRIEVAL, RECIPES, flags)
    rows = checked_rows(data_args)
    glossary = Glossary.from_file(data_args.glossary) if data_args.glossary else None
    return TermRetrievalTrainer(build_model(model_args, args), args, rows[data_args.train_split], glossary=glossary)


def measure_wait(trainer: TermRetrievalTrainer, device: torch.device) -> dict[str, Any]:
    """Train, and read the share off the last log line; where it is too large, with a profile of the loader."""
    trainer.add_callback(ThroughputCallback())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "data_wait_share" in entry][-1]
    found: dict[str, Any] = {
        "device": device_name(device),
        **verdict(logged["data_wait_share"], below=BELOW),
        "judged": "waiting, of the time of the steps",
        "steps": trainer.state.global_step,
        "batch_size": trainer.args.train_batch_size,
        **{name: logged[name] for name in ("clips_per_second", "mfu", "tflops_per_second") if name in logged},
    }
    return found if found["met"] else found | {"profile": loader_profile(trainer)}


def loader_profile(trainer: TermRetrievalTrainer) -> str:
    """The functions that an epoch of batches spends most time in, by `cProfile`, without workers."""
    trainer.args.dataloader_num_workers = 0
    trainer.args.dataloader_persistent_workers = False
    loader = trainer.get_train_dataloader()
    return top_functions(lambda: deque(loader, maxlen=0), PROFILED_OPERATORS)
