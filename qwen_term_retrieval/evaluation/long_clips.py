"""Long clips, whose windows are scored as they are read: memory follows the bank, not the clip.

Shapes: C chunks, W windows, N spellings of a bank, D embedding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.looks.first_look import nearest
from qwen_term_retrieval.retrieval.matches import BestOfEach, TermMatch
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.retrieval.scoring import blocks_of_scores

# The windows of a minute are 20 MB or less.
LONG_SECONDS = 60.0


def runs_of_clips(seconds: Sequence[float]) -> list[tuple[int, int]]:
    """First and last (excluded) of clips that are taken together: each long one is taken alone.

    >>> runs_of_clips([2.0, 3.0, 3600.0, 4.0])
    [(0, 2), (2, 3), (3, 4)]
    """
    long = [place for place, each in enumerate(seconds) if each > LONG_SECONDS]
    return list(itertools.pairwise(sorted({0, len(seconds), *long, *(place + 1 for place in long)})))


def scores_of_long_clip(
    retriever: TermRetriever, audio: Any, banks: Sequence[TermIndex], *, top_k: int, batch_size: int
) -> tuple[list[TermMatch], list[torch.Tensor]]:
    """The nearest terms of a clip in the last bank, and the score of every spelling of each bank: its best window's.

    Scores are float32 (N,) on the CPU; all 0 in silence.

    Args:
        audio: see `clip_blocks`.
    """
    best_of_bank: list[torch.Tensor | None] = [None] * len(banks)
    matches = BestOfEach()
    for _, _, windows in retriever.encoder.encode_chunks(retriever.encoder.cut([audio]), batch_size):
        for place, bank in enumerate(banks):
            blocks = blocks_of_scores(
                windows.vectors.to(bank.device, torch.float32), bank.vectors_ND, windows.mask.to(bank.device)
            )
            best_N = torch.cat([scores_CWN.amax(dim=(0, 1)) for _, scores_CWN in blocks])
            before_N = best_of_bank[place]
            best_of_bank[place] = best_N if before_N is None else torch.maximum(before_N, best_N)
        for own in nearest(windows, banks[-1], top_k, retriever.encoder.logit_scale):
            matches.add(own)
    scores = [
        torch.zeros(len(bank.vectors_ND)) if best_N is None else best_N.cpu()
        for bank, best_N in zip(banks, best_of_bank, strict=True)
    ]
    return matches.best(top_k), scores
