"""Part `step`: whole training steps on 3 s clips with LoRA, ours beside sentence-transformers on the same towers.

On a CPU with Whisper-base's weights in float32, on a GPU with a Whisper encoder of the real size (that of large-v3 and,
but for the pooling of pairs of frames, of Qwen2-Audio, which sentence-transformers does not load) and random weights,
in bfloat16. The text tower is MiniLM. Both trainers take turns, each from its own data to its own optimizer step; a
turn's first step is not counted. Ours does more in a step: two losses in both directions, and a pyramid of seven means.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.training.clips import packed_clips
from benchmarks.training.measure import OutputsDifferError, Row, comparison, encoder_flops, synchronize
from benchmarks.training.peer import Peer
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.models.flops import StepFlops
from qwen_term_retrieval.models.lora import base_state
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer

AT_LEAST = 5.0
OURS, PEER = "ours", "sentence-transformers"
TEXT_TOWER = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDING_DIM, TEMPERATURE = 384, 0.07
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.1}
WHISPER_LARGE: dict[str, Any] = {
    "model_type": "whisper",
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
}


@dataclass
class Steps:
    """What is trained, and for how long.

    `steps` are those counted in a turn, of `turns` turns each.
    """

    audio_tower: str | dict[str, Any] = "openai/whisper-base"
    batch_size: int = 8
    steps: int = 2
    turns: int = 2
    num_workers: int = 0
    activation_checkpointing: bool = False

    @classmethod
    def on(cls, device: torch.device) -> Steps:
        """On a GPU with checkpointing, without which 128 clips of 30 s do not fit into 80 GB."""
        if device.type == "cpu":
            return cls()
        workers = min(8, os.cpu_count() or 1)
        return cls(WHISPER_LARGE, batch_size=128, steps=10, num_workers=workers, activation_checkpointing=True)

    @property
    def num_clips(self) -> int:
        """As many as a turn trains on, and one batch more: in the last step of an epoch none is fetched."""
        return self.batch_size * (self.steps + 2)


@dataclass
class StepClock(TrainerCallback):
    """Seconds from the end of one step to the end of the next, data and all."""

    device: torch.device
    seconds: list[float] = field(default_factory=list)
    _ended: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ended = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        if self._ended is not None:
            self.seconds.append(now - self._ended)
        self._ended = now


def run(device: torch.device, work: Path, steps: Steps | None = None) -> dict[str, Any]:
    """Times of training steps; packs of clips are kept in `work`."""
    steps = steps or Steps.on(device)
    rows = packed_clips(work / f"step-clips-{steps.num_clips}", steps.num_clips)
    clocks = {OURS: StepClock(device), PEER: StepClock(device)}
    with tempfile.TemporaryDirectory() as folder:
        ours, peer = build_trainers(steps, rows, Path(folder), clocks, device)
        require_same_towers(ours.retrieval_model, peer)
        trainers = {OURS: ours, PEER: peer.trainer}
        for _ in range(steps.turns):
            for trainer in trainers.values():
                trainer.train()
        found_rows = {
            OURS: Row(
                "`TermRetrievalTrainer`: frames of 3 s", seconds=list(clocks[OURS].seconds), flops=own_flops(ours)
            ),
            PEER: Row(
                "`SentenceTransformerTrainer`, `MultipleNegativesRankingLoss`: frames of 30 s",
                beside=OURS,
                seconds=list(clocks[PEER].seconds),
                flops=peer_flops(peer, steps.batch_size),
            ),
        }
        found = comparison(
            found_rows,
            ours=OURS,
            against=PEER,
            at_least=AT_LEAST,
            device=device,
            dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
            profiled=forward_and_backward(ours),
        )
    return found | {
        "batch_size": steps.batch_size,
        "dataloader_num_workers": steps.num_workers,
        "activation_checkpointing": steps.activation_checkpointing,
        "audio_tower": steps.audio_tower if isinstance(steps.audio_tower, str) else "random weights",
        "clips_per_second": {name: steps.batch_size / row.median for name, row in found_rows.items()},
    }


def build_trainers(
    steps: Steps, rows: datasets.Dataset, folder: Path, clocks: dict[str, StepClock], device: torch.device
) -> tuple[TermRetrievalTrainer, Peer]:
    """Both trainers, with the same base weights and the same settings."""
    torch.manual_seed(0)
    config = TermRetrievalConfig(
        audio_tower=steps.audio_tower, text_tower=TEXT_TOWER, embedding_dim=EMBEDDING_DIM, temperature=TEMPERATURE
    )
    model = TermRetrievalModel(config)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": steps.batch_size,
        "max_steps": steps.steps + 1,
        "learning_rate": 1e-4,
        "use_cpu": device.type == "cpu",
        "bf16": device.type == "cuda",
        "dataloader_num_workers": steps.num_workers,
        "dataloader_drop_last": True,
        "activation_checkpointing": steps.activation_checkpointing,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    peer = Peer(
        model.audio_tower.encoder,
        TEXT_TOWER,
        folder / "peer",
        rows,
        embedding_dim=EMBEDDING_DIM,
        temperature=TEMPERATURE,
        lora={**LORA, "target_modules": rf"(.*\.)?{model.audio_tower.lora_targets}"},
        settings=settings,
        callbacks=[clocks[PEER]],
    )
    model.add_lora(LORA["r"], LORA["lora_alpha"], LORA["lora_dropout"])
    args = TermRetrievalArguments(output_dir=str(folder / "ours"), **settings)
    ours = TermRetrievalTrainer(model, args, rows, callbacks=[clocks[OURS]])
    ours.remove_callback(PrinterCallback)
    return ours, peer


def require_same_towers(model: TermRetrievalModel, peer: Peer) -> None:
    """Both train adapters of the same shapes on the same base weights.

    Raises:
        OutputsDifferError: they do not.
    """
    own, theirs = base_state(model.audio_tower.encoder), base_state(peer.encoder)
    if own.keys() != theirs.keys():
        raise OutputsDifferError(f"one tower alone has {sorted(own.keys() ^ theirs.keys())[:3]}")
    unlike = [name for name in own if not torch.equal(own[name].cpu(), theirs[name].cpu())]
    if unlike:
        raise OutputsDifferError(f"the towers begin with other weights: {unlike[:3]}")
    own_adapters, their_adapters = (
        sorted(tuple(values.shape) for values in encoder.parameters() if values.requires_grad)
        for encoder in (model.audio_tower.encoder, peer.encoder)
    )
    if own_adapters != their_adapters:
        raise OutputsDifferError("the towers train weights of other shapes")


def forward_and_backward(trainer: TermRetrievalTrainer) -> Callable[[], object]:
    """One more micro-batch for a trainer that has trained, for a profile."""

    def run_once() -> object:
        batch = next(iter(trainer.get_train_dataloader()))
        return trainer.training_step(trainer.model_wrapped, batch)

    return run_once


def own_flops(trainer: TermRetrievalTrainer) -> int:
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    return StepFlops(trainer.retrieval_model)(batch["model_inputs"])


def peer_flops(peer: Peer, batch_size: int) -> int:
    """Operations of its audio route on a batch of clips; those of its text route are ours too, and few."""
    trainer, model = peer.trainer, peer.model
    features, _ = trainer.collect_features(trainer._prepare_inputs(next(iter(trainer.get_train_dataloader()))))
    audio = next(each for each in features if "input_features" in each)
    one_clip = {**audio, "input_features": audio["input_features"][:1]}
    weights = [values for values in model.parameters() if values.requires_grad]
    model.eval()
    return batch_size * encoder_flops(peer.encoder, lambda: model(one_clip)["sentence_embedding"], weights)
