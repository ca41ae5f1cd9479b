"""Part `gpu`: model FLOPs utilisation of training steps, Qwen2-Audio's encoder at its real size, on a CUDA device.

bfloat16, LoRA of rank 16, 256 clips of 3 s a step, random weights, a text tower of characters. The operations are those
that the gradients need, counted (`models/flops.py`); the peak is the vendor's figure for the device. A step that does
not fit into memory is run with activation checkpointing, and said to be: what is computed twice counts once.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PrinterCallback

from benchmarks.training.clips import packed_clips
from benchmarks.training.forward import REAL_SIZE
from benchmarks.training.measure import device_name, top_operators, verdict
from benchmarks.training.step import forward_and_backward
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.models.flops import peak_flops
from qwen_term_retrieval.runs.memory import NotEnoughMemoryError
from qwen_term_retrieval.trainer_callbacks import ThroughputCallback
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer

AT_LEAST = 0.4
LOGGED = ("clips_per_second", "tflops_per_second", "data_wait_share")


def run(
    device: torch.device,
    work: Path,
    *,
    encoder_config: dict[str, Any] = REAL_SIZE,
    batch_size: int = 256,
    num_steps: int = 10,
) -> dict[str, Any]:
    """Utilisation over `num_steps` steps, after as many that are not counted."""
    num_clips = batch_size * (num_steps + 1)
    rows = packed_clips(work / f"gpu-clips-{num_clips}", num_clips)
    with tempfile.TemporaryDirectory() as folder:
        checkpointing = False
        trainer = lora_trainer(rows, Path(folder), device, encoder_config, batch_size, num_steps, checkpointing)
        try:
            trainer.train()
        except (NotEnoughMemoryError, torch.OutOfMemoryError):
            del trainer
            torch.cuda.empty_cache()
            checkpointing = True
            trainer = lora_trainer(rows, Path(folder), device, encoder_config, batch_size, num_steps, checkpointing)
            trainer.train()
        logged = [entry for entry in trainer.state.log_history if "mfu" in entry][-1]
        found = {
            "device": device_name(device),
            **verdict(logged["mfu"], at_least=AT_LEAST),
            "judged": "MFU of whole steps",
            "batch_size": batch_size,
            "parameters": sum(values.numel() for values in trainer.retrieval_model.audio_tower.parameters()),
            "activation_checkpointing": checkpointing,
            **{name: logged[name] for name in LOGGED if name in logged},
            **floor_of(logged, batch_size, peak_flops(device, number_type(device))),
        }
        if device.type == "cuda":
            found["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        return found if found["met"] else found | {"profile": top_operators(forward_and_backward(trainer), device)}


def lora_trainer(
    rows: datasets.Dataset,
    folder: Path,
    device: torch.device,
    encoder_config: dict[str, Any],
    batch_size: int,
    num_steps: int,
    activation_checkpointing: bool,
) -> TermRetrievalTrainer:
    torch.manual_seed(0)
    model = TermRetrievalModel(TermRetrievalConfig(audio_tower=encoder_config, text_tower="phonemes:characters"))
    model.add_lora(r=16, alpha=32, dropout=0.1)
    args = TermRetrievalArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        max_steps=2 * num_steps,
        logging_steps=num_steps,
        use_cpu=device.type == "cpu",
        bf16=number_type(device) is torch.bfloat16,
        activation_checkpointing=activation_checkpointing,
        eval_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = TermRetrievalTrainer(model, args, rows, callbacks=[ThroughputCallback()])
    trainer.remove_callback(PrinterCallback)
    return trainer


def number_type(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def floor_of(logged: dict[str, float], batch_size: int, peak: float) -> dict[str, float]:
    """Operations and seconds of a step, and the seconds that it would take at the device's peak."""
    seconds = batch_size / logged["clips_per_second"]
    flops = logged["tflops_per_second"] * 1e12 * seconds
    return {
        "step_seconds": seconds,
        "flops_per_step": flops,
        "floor_seconds": flops / peak,
        "peak_flops_per_second": peak,
    }
