"""How well hidden tokens are predicted, on clips that are heard and hidden in the same way each time.

A loss says little without what it takes to beat: `unigram_entropy`, that of the tokens' own frequencies in these clips,
hidden or not, which a model reaches that hears nothing; and `top_code_share`, the accuracy of always saying the most
frequent code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from qwen_term_retrieval.batching import length_buckets
from qwen_term_retrieval.distributed import rank, sum_over_ranks, world_size
from qwen_term_retrieval.pretraining.audio.data import NestClips, fixed_visits
from qwen_term_retrieval.pretraining.audio.model import NestForPreTraining
from qwen_term_retrieval.trainer_callbacks.codebook_usage import CodeCounts

_SEED = 0


@torch.no_grad()
def evaluate_clips(
    model: NestForPreTraining,
    clips: NestClips,
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    batch_size: int,
    max_clips: int = 0,
) -> dict[str, float]:
    """`loss` (nats a hidden token) and `accuracy`, beside them `unigram_entropy`, `top_code_share`, `codes_used`.

    The same on any number of ranks, each of which calls it.

    Args:
        prepare: a batch of `clips` to inputs of the model, on its device.
        max_clips: so many, from all over; 0: all of them.
    """
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    codes = CodeCounts(model.config.num_books, model.config.num_codes)
    for batch in _own_batches(clips, batch_size, max_clips):
        output = model(**prepare(batch))
        codes.add(output.tokens_BTH, output.num_frames_B)
        count = len(output.tokens_NH)
        hits = (output.logits_NCH.argmax(1) == output.tokens_NH).float().mean(1).sum()
        sums += torch.tensor([float(output.loss) * count, float(hits), float(count)], dtype=torch.float64)
    loss, hits, count = sum_over_ranks(sums.to(model.device)).tolist()
    usage = codes.usage(model.device)
    return {
        "loss": loss / max(count, 1.0),
        "accuracy": hits / max(count, 1.0),
        "unigram_entropy": usage["entropy"],
        "top_code_share": usage["top_share"],
        "codes_used": usage["used"],
    }


def _own_batches(clips: NestClips, batch_size: int, max_clips: int) -> Iterator[dict[str, Any]]:
    """This rank's share of the batches, clips of like length together; what is in a batch depends on no rank."""
    visits = fixed_visits(len(clips), _SEED)
    if max_clips and max_clips < len(visits):
        chosen = np.random.default_rng(_SEED).permutation(len(visits))[:max_clips]
        visits = [visits[clip] for clip in np.sort(chosen)]
    durations = clips.durations[[visit.clip for visit in visits]]
    for number, batch in enumerate(length_buckets(durations, batch_size)):
        if number % world_size() == rank():
            yield clips.batch([visits[place] for place in batch])
