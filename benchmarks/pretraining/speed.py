"""CPU seconds of ours beside NeMo's, one thread, in turns: quantizer, masks, collating, and whole steps.

CPU seconds, not seconds: other work on the machine lengthens both, and leaves the ratio.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks.pretraining.nemo_model import in_nemo, small_model
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.packs.clip_reader import ClipReader
from qwen_term_retrieval.packs.loading import load_rows
from qwen_term_retrieval.pretraining.audio import ClipSettings, NestClips
from qwen_term_retrieval.pretraining.audio.arguments import AudioPretrainingArguments
from qwen_term_retrieval.pretraining.audio.data import fixed_visits
from qwen_term_retrieval.pretraining.audio.trainer import PretrainingTrainer
from qwen_term_retrieval.trainer_callbacks import ThroughputCallback

CLIP_SECONDS = 15
AUGMENTATION = {
    "prob": 0.5, "noise_ratio": 0.5, "min_r_speech": -5.0, "max_r_speech": 5.0, "min_r_noise": -5.0,
    "max_r_noise": 20.0, "min_mix_rate": 0.5, "max_mix_rate": 0.5, "min_num_segments": 1, "max_num_segments": 1,
    "min_num_speakers": 1, "max_num_speakers": 1,
}  # fmt: skip


def in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Median CPU milliseconds of each call, and the ratio of the first, NeMo's, to the last, ours."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.process_time()
            call()
            times[name].append(1e3 * (time.process_time() - started))
    medians = {name: statistics.median(each) for name, each in times.items()}
    first, *_, last = medians.values()
    return {"cpu_ms": medians, "ratio": first / last, "rounds": rounds}


def long_clips(folder: Path, count: int) -> NestClips:
    """Speech of the demo corpus end to end, in clips of 15 s, as a pack."""
    reader = ClipReader(load_rows("builders/term_audio")["train"])
    pcm_S = np.concatenate(reader.views(range(len(reader))))
    length = CLIP_SECONDS * SAMPLING_RATE
    (folder / "long").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        wave_S = pcm_S[number * length : (number + 1) * length]
        soundfile.write(folder / "long" / f"{number:03d}.wav", wave_S, SAMPLING_RATE, subtype="PCM_16")
    rows = load_rows(str(folder / "long"), ("audio",))["train"]
    return NestClips(rows, small_model().config, ClipSettings())


def measure_speed(rounds: int, batch: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    own = small_model().train()
    nemo = in_nemo(own).train()
    with tempfile.TemporaryDirectory() as folder:
        clips = long_clips(Path(folder), 2 * batch)
        return {
            "quantizer, 1,000 tokens": in_turns(_quantizers(own, nemo), rounds),
            "masks, 32 × 2,000 frames": in_turns(_masks(own, nemo), 10 * rounds),
            f"collate and augment, {batch} clips of 15 s": in_turns(_collates(clips, batch), 3 * rounds),
            f"whole step, {batch // 2} clips of 15 s, one encoder": in_turns(
                _steps(own, nemo, clips, batch // 2), rounds
            ),
        }


def _quantizers(own: Any, nemo: Any) -> dict[str, Callable[[], object]]:
    mel_1MF = torch.randn(1, 8000, 80)
    return {
        "NeMo": lambda: nemo.quantizer(input_signal=mel_1MF.transpose(1, 2)),
        "ours": lambda: own.quantizer(mel_1MF),
    }


def _masks(own: Any, nemo: Any) -> dict[str, Callable[[], object]]:
    mel_BFM, lengths_B = torch.randn(32, 80, 2000), torch.full((32,), 2000)
    mel_BMF = mel_BFM.transpose(1, 2).contiguous()

    def ours() -> torch.Tensor:
        mask_BM = own.block_mask(lengths_B, range(32))
        return torch.where(mask_BM[..., None], own.fill, mel_BMF)

    return {"NeMo": lambda: nemo.mask_processor(input_feats=mel_BFM, input_lengths=lengths_B), "ours": ours}


def _nemo_items(clips: NestClips, count: int) -> list[Any]:
    """NeMo's items with clip and noise in memory: what its dataset would have read."""
    from nemo.collections.asr.data.ssl_dataset import AudioNoiseItem

    views = [torch.from_numpy(pcm / np.float32(32768)) for pcm in clips.reader.views(range(2 * count))]
    length = torch.tensor(len(views[0]))
    return [
        AudioNoiseItem(str(row), views[row], length, views[count + row].clone(), length.clone()) for row in range(count)
    ]


def _collates(clips: NestClips, count: int) -> dict[str, Callable[[], object]]:
    from nemo.collections.asr.data.ssl_dataset import _audio_noise_collate_fn
    from nemo.collections.asr.modules.ssl_modules import MultiSpeakerNoiseAugmentation

    augmentor, items, visits = (
        MultiSpeakerNoiseAugmentation(**AUGMENTATION),
        _nemo_items(clips, count),
        iter(range(10**9)),
    )
    return {
        "NeMo, audio in memory": lambda: _audio_noise_collate_fn(items, augmentor),
        "ours, audio from a pack": lambda: clips.batch(fixed_visits(count, seed=next(visits))),
    }


def _steps(own: Any, nemo: Any, clips: NestClips, count: int) -> dict[str, Callable[[], object]]:
    batch = clips.batch(fixed_visits(count, seed=0))
    batch.setdefault("noisy_pcm_BS", batch["pcm_BS"])
    clean_BS, noisy_BS = (batch[name] / 32768 for name in ("pcm_BS", "noisy_pcm_BS"))
    lengths_B = batch["num_samples_B"]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-6) for model in (own, nemo)]

    def theirs() -> None:
        log_probs, lengths, masks, tokens = nemo.forward(
            input_signal=clean_BS, input_signal_length=lengths_B, noisy_input_signal=noisy_BS,
            noisy_input_signal_length=lengths_B, apply_mask=True,
        )  # fmt: skip
        nemo.loss(masks=masks, decoder_outputs=log_probs, targets=tokens, decoder_lengths=lengths).backward()
        optimizers[1].step()
        optimizers[1].zero_grad()

    def ours() -> None:
        own(**batch).loss.backward()
        optimizers[0].step()
        optimizers[0].zero_grad()

    return {"NeMo": theirs, "ours": ours}


def measure_waiting(steps: int) -> dict[str, Any]:
    """The share of a step's time that a run on the demo corpus waits for data, with one worker."""
    torch.manual_seed(0)
    model = small_model()
    clips = NestClips(load_rows("builders/term_audio")["train"], model.config, ClipSettings())
    with tempfile.TemporaryDirectory() as folder:
        args = AudioPretrainingArguments(
            output_dir=folder, use_cpu=not torch.cuda.is_available(), max_steps=steps, logging_steps=steps // 2,
            max_batch_seconds=48, dataloader_num_workers=1, eval_strategy="no", save_strategy="no", report_to="none",
            disable_tqdm=True, check_memory=False, learning_rate=1e-4, lr_scheduler_type="constant", warmup_steps=0,
        )  # fmt: skip
        trainer = PretrainingTrainer(model, args, clips, callbacks=[ThroughputCallback()])
        trainer.train()
    lines = [line for line in trainer.state.log_history if "data_wait_share" in line]
    return {name: lines[-1][name] for name in ("data_wait_share", "audio_seconds_per_second", "mfu")}
