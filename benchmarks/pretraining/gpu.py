"""NEST-L in bf16 on a GPU: audio-hours a second and MFU, from a run of the trainer itself.

    python -m benchmarks.pretraining --only gpu

is one prepared script of a few minutes: batches of 640 audio seconds, clips of 15 s, noise on the device.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.pretraining.speed import CLIP_SECONDS, long_clips
from qwen_term_retrieval.pretraining.audio import ClipSettings, NestClips, NestConfig, NestForPreTraining
from qwen_term_retrieval.pretraining.audio.arguments import AudioPretrainingArguments
from qwen_term_retrieval.pretraining.audio.trainer import PretrainingTrainer
from qwen_term_retrieval.trainer_callbacks import ThroughputCallback


def measure_gpu(steps: int, batch_seconds: tuple[int, ...] = (640, 1920), size: str = "L") -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"skipped": "no GPU here"}
    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "size": size}
    with tempfile.TemporaryDirectory() as folder:
        rows = long_clips(Path(folder), 128).rows
        for seconds in batch_seconds:
            torch.manual_seed(0)
            model = NestForPreTraining(NestConfig.of_size(size))
            clips = NestClips(rows, model.config, ClipSettings(), on_device=True)
            args = AudioPretrainingArguments(
                output_dir=folder, bf16=True, max_steps=steps, logging_steps=max(1, steps // 3),
                per_device_train_batch_size=seconds // CLIP_SECONDS, dataloader_num_workers=4, eval_strategy="no",
                save_strategy="no", report_to="none", disable_tqdm=True, learning_rate=1e-4, warmup_steps=0,
                lr_scheduler_type="constant",
            )  # fmt: skip
            trainer = PretrainingTrainer(model, args, clips, callbacks=[ThroughputCallback()])
            trainer.train()
            last = [line for line in trainer.state.log_history if "mfu" in line][-1]
            found[f"{seconds} s a batch"] = {
                "audio_hours_per_second": last["audio_seconds_per_second"] / 3600,
                "mfu": last["mfu"],
                "data_wait_share": last["data_wait_share"],
                "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
            }
    return found
