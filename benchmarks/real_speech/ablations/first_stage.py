"""What a faster-learning prototype did otherwise, one difference at a time: which of it makes a better first stage.

    python -m benchmarks.real_speech.ablations.first_stage           # every run that has no result yet, the table
    python -m benchmarks.real_speech.ablations.first_stage --report  # the table of what is there

A prototype of November 2026 ranked the right term first more often than the model of the recipes after as much
training. It differed in seven things, and each is built here on top of the library's model, trained alone with three
seeds, and searched as the library searches (by windows) and as the prototype did (one vector of the whole clip).
What holds becomes a part of the library; what does not stays here. Sets, banks and seeds are those of `ablation.py`;
the training clips are formant voices alone, so that they are made in minutes.

Shapes: B clips, T frames, L layers, H hidden, P spans, K segments, R pronunciations, S symbols.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.real_speech.ablations.ablation import TOWER, WINDOWS, distractors, run_variants, small_run, test_ranks
from benchmarks.real_speech.ablations.report import table_of_runs
from benchmarks.real_speech.asterisk import asterisk_texts
from benchmarks.real_speech.judged_sets import is_test_text
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.models.text_towers.phoneme_encoder import ConvBlock
from qwen_term_retrieval.packs.packing import pack_corpus
from qwen_term_retrieval.synthesis.corpus_folder import write_corpus
from qwen_term_retrieval.synthesis.laptop import laptop_rows
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer

NUM_TEXTS = 6_000
STEPS, BATCH = 160, 256
WORK = Path("outputs/first_stage")
ABOUT = {
    "budget": f"{STEPS} steps of {BATCH} of {NUM_TEXTS:,} clips by formant voices, Whisper-base frozen. "
    "Studio: Asterisk prompts of at most four words, one speaker, n = 341. Volunteers: KTuberling's English "
    "words, about two speakers, n = 72."
}
_SPANS_AT_ONCE = 256
Change = Callable[[TermRetrievalModel], None]


@dataclass(frozen=True)
class Variant:
    """One change from the first row of the table: of the settings, or of a part of the built model."""

    name: str
    what: str
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    change: Change | None = None


# ---- the differences ----------------------------------------------------------------------------------------------


def norm_frames(model: TermRetrievalModel) -> None:
    """Every layer's frames to mean 0 and variance 1 before they are mixed and pooled."""
    pool = model.pool_spans
    model.pool_spans = (
        lambda frames, *spans: pool(  # type: ignore[method-assign]
            F.layer_norm(frames.float(), frames.shape[-1:]), *spans
        )
    )


class NormedHead(nn.Linear):
    """A linear layer behind a layer norm and dropout."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.norm = nn.LayerNorm(in_features)
        self.dropout = nn.Dropout(0.1)

    def forward(self, pooled_PH: torch.Tensor) -> torch.Tensor:
        return super().forward(self.dropout(self.norm(pooled_PH)))


def norm_head(model: TermRetrievalModel) -> None:
    """LayerNorm and dropout before both heads."""
    for name in ("audio_head", "text_head"):
        head = getattr(model, name)
        setattr(model, name, NormedHead(head.in_features, head.out_features))


class GatedBlock(ConvBlock):
    """A residual convolution whose other half gates it."""

    activation = staticmethod(F.glu)

    def __init__(self, hidden_size: int, kernel_size: int, dropout: float):
        super().__init__(hidden_size, kernel_size, dropout)
        self.conv = nn.Conv1d(hidden_size, 2 * hidden_size, kernel_size, padding="same")


def gate_text(model: TermRetrievalModel) -> None:
    """Gated convolutions in the text tower."""
    config: Any = model.text_tower.config
    sizes = (config.hidden_size, config.kernel_size, config.dropout)
    model.text_tower.blocks = nn.ModuleList(GatedBlock(*sizes) for _ in range(config.num_blocks))


def overlap_segments(model: TermRetrievalModel) -> None:
    """Means weighted by triangles that reach into both neighbours, in place of the pyramid's boxes."""
    model.pool_spans = functools.partial(_pool_triangles, model)  # type: ignore[method-assign]


def _pool_triangles(
    model: TermRetrievalModel,
    frames_BTH: torch.Tensor,
    num_frames_B: torch.Tensor,
    clip_index_P: torch.Tensor,
    start_P: torch.Tensor,
    end_P: torch.Tensor,
) -> torch.Tensor:
    if frames_BTH.dim() == 4:
        frames_BTH = torch.einsum("blth,l->bth", frames_BTH.float(), model.layer_mix.float().softmax(0))
    pooled = []
    for rows_p in torch.arange(len(start_P)).split(_SPANS_AT_ONCE):
        clips_p = clip_index_P[rows_p]
        weights_pKT = _triangles(model.config.segments, start_P[rows_p], end_P[rows_p], num_frames_B[clips_p])
        frames_pTH = frames_BTH[clips_p, : weights_pKT.shape[2]].float()
        pooled.append(torch.bmm(weights_pKT, frames_pTH).flatten(1))
    return F.normalize(model.audio_head(torch.cat(pooled)), dim=-1)


def _triangles(
    levels: Sequence[int], start_P: torch.Tensor, end_P: torch.Tensor, num_frames_P: torch.Tensor
) -> torch.Tensor:
    """What each frame of its clip weighs in each segment of a span, (P, K, T)."""
    centre_T = torch.arange(int(num_frames_P.max())) + 0.5
    start_P1, length_P1 = start_P[:, None], (end_P - start_P)[:, None].clamp(min=1.0)
    inside_PT = (centre_T >= start_P1 - 0.5) & (centre_T < start_P1 + length_P1 + 0.5)
    inside_PT &= centre_T < num_frames_P[:, None]
    weights = []
    for level in levels:
        for k in range(level):
            middle_P1 = start_P1 + length_P1 * (k + 0.5) / level
            # One segment is the plain mean; the others fall to nothing at their neighbours' middles.
            shape_PT = 1 - (centre_T - middle_P1).abs() * level / length_P1 if level > 1 else torch.ones(1)
            weight_PT = shape_PT.clamp(min=1e-4) * inside_PT
            weights.append(weight_PT / weight_PT.sum(1, keepdim=True).clamp(min=1e-6))
    return torch.stack(weights, dim=1)


def _all_of_it(model: TermRetrievalModel) -> None:
    overlap_segments(model)
    norm_frames(model)
    norm_head(model)
    gate_text(model)


VARIANTS = (
    Variant("base", "the recipe: the last 3 layers mixed, pyramid, one linear head, jittered spans, batches of 256"),
    Variant("exact spans", "spans as they are, trimmed to the term, not jittered", training={"span_jitter": 0.0}),
    Variant("normed frames", "frames layer-normed before they are mixed and pooled", change=norm_frames),
    Variant("four layers", "a learned mix of the last four", model={"audio_layers": 4}),
    Variant("triangles", "overlapping triangular segments", change=overlap_segments),
    Variant("normed heads", "LayerNorm and dropout before both heads", change=norm_head),
    Variant("gated text", "gated convolutions in the text tower", change=gate_text),
    Variant(
        "batch 512",
        "half as many steps of 512",
        training={"per_device_train_batch_size": 2 * BATCH, "max_steps": STEPS // 2, "warmup_steps": 15},
    ),
    Variant(
        "all of it",
        "all seven",
        model={"audio_layers": 4},
        training={
            "span_jitter": 0.0,
            "per_device_train_batch_size": 2 * BATCH,
            "max_steps": STEPS // 2,
            "warmup_steps": 15,
        },
        change=_all_of_it,
    ),
)
WHOLE_CLIP = Variant("base, whole clip", "the same models, searched by one vector of the whole clip")


# ---- one run ------------------------------------------------------------------------------------------------------


@functools.cache
def training_rows(work: Path) -> datasets.Dataset:
    """`NUM_TEXTS` clips that say one term alone, by flite and espeak-ng, none of it a text of a test set."""
    pack = work / "packs" / "formants"
    if not (pack / "pack.json").is_file():
        rows = laptop_rows(num_clips=NUM_TEXTS + 2_000, num_kokoro=0, exclude=asterisk_texts())
        alone = [row for row in rows if row.split == "train" and row.request.sentence == row.request.text]
        allowed = [row for row in alone if not is_test_text(row.request.text)][:NUM_TEXTS]
        write_corpus(allowed, work / "corpus", on_error="skip", overwrite=True)
        pack_corpus(work / "corpus", pack)
    return datasets.load_dataset(str(pack), split="train")


def run(variant: Variant, seed: int, work: Path) -> dict[str, Any]:
    """Train, test, and give the numbers."""
    started = time.monotonic()
    torch.manual_seed(seed)
    settings = {"audio_layers": 3, "windows": WINDOWS, "embedding_dim": 384} | variant.model
    model = TermRetrievalModel(TermRetrievalConfig(audio_tower=TOWER, **settings))
    if variant.change is not None:
        variant.change(model)
    budget = {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "learning_rate": 1.5e-3, "warmup_steps": 30}
    args = small_run(work / "runs", seed, **budget | variant.training)
    trainer = TermRetrievalTrainer(model, args, training_rows(work))
    trainer.train()
    trained_s = time.monotonic() - started
    others_ND = model.encode_terms(distractors(work))
    ranks = test_ranks(model, others_ND, work)
    model.config.windows = None
    return {
        "variant": variant.name,
        "seed": seed,
        "clips": len(training_rows(work)),
        "train_s": round(trained_s, 1),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "ranks": ranks,
        "ranks_whole_clip": test_ranks(model, others_ND, work),
        "settings": {"model": variant.model, "training": variant.training, "what": variant.what},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    def report(results: Path) -> str:
        return table_of_runs("first_stage", results, VARIANTS, WHOLE_CLIP, ABOUT)

    run_variants(__doc__, VARIANTS, WORK, run, report, arguments)


if __name__ == "__main__":
    main()
