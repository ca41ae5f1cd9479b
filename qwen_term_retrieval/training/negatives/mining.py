"""Mining the hard negatives of a run: by the model as it is, and a share of them by their sound.

A mining embeds the training clips and the training glossary, every rank its share. `nearest` finds the nearest wrong
terms of a batch of clips as soon as it is embedded, so that no more than a batch of queries is in memory; a share of
the columns may come from terms that sound alike instead (`phonetic`).

Shapes: B clips of a batch, C clips of all, G groups of queries, K negatives, M spellings, N terms, P queries (spans to
pool), D embedding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from qwen_term_retrieval.batching import length_buckets
from qwen_term_retrieval.distributed import rank, world_size
from qwen_term_retrieval.models.embeddings import Spans
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.models.text_towers.tower import pronouncer_of
from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.runs.sampling import Visit
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.text.pronouncing import Pronouncer
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.data.clips import TrainingClips, other_spellings, said_in
from qwen_term_retrieval.training.data.preparation import audio_source
from qwen_term_retrieval.training.data.texts import encode_by_all_ranks
from qwen_term_retrieval.training.negatives.nearest import NO_TERM, nearest_wrong_terms
from qwen_term_retrieval.training.negatives.phonetic import sounding_alike

_QUERIES_AT_ONCE = 512


class HardNegativeMiner:
    """Mines what the settings of a run ask for, again and again.

    Args:
        clips: to train on.
        glossary: the terms to choose from.
        args: the run.
    """

    def __init__(self, clips: TrainingClips, glossary: Glossary, args: TermRetrievalArguments):
        # As they were recorded: what is near to a distorted clip is near to its distortion.
        self.clips = TrainingClips(clips.rows, clips.frame_cache)
        self.glossary = glossary
        self.args = args
        self._sounding_alike: NDArray[np.int32] | None = None

    def mine(self, model: TermRetrievalModel) -> NDArray[np.int32]:
        """Terms of the glossary that each clip is to be told from, int32 (C, hard_neg_k), on every rank."""
        args, show_progress = self.args, not self.args.disable_tqdm
        mined_CK = mine_hard_negatives(
            model,
            self.clips,
            audio_source(self.clips, model, args),
            self.glossary,
            args.hard_neg_k,
            max_positive_ratio=args.hard_neg_max_positive_ratio,
            batch_size=args.eval_batch_size,
            show_progress=show_progress,
        )
        if not args.hard_neg_phonetic_ratio:
            return mined_CK
        if self._sounding_alike is None:
            pronouncer = pronouncer_of(model.text_tower) or Pronouncer(args.hard_neg_phonemizer)
            self._sounding_alike = sounding_alike(
                self.clips, self.glossary, pronouncer, args.hard_neg_k, show_progress=show_progress
            )
        return mix_negatives(mined_CK, self._sounding_alike, args.hard_neg_phonetic_ratio)


def mine_hard_negatives(
    model: TermRetrievalModel,
    clips: TrainingClips,
    load_audio: Callable[[Sequence[dict[str, Any]]], tuple[dict[str, torch.Tensor], torch.Tensor]],
    glossary: Glossary,
    k: int,
    *,
    max_positive_ratio: float = 0.95,
    batch_size: int = 64,
    show_progress: bool = False,
) -> NDArray[np.int32]:
    """The wrong terms that the model finds nearest to each clip, by every rank for its share of the clips.

    Args:
        clips: as they were recorded: not distorted.
        load_audio: as the collator has it.
        glossary: the terms to choose from.
        k: terms a clip; see `nearest_wrong_terms` for what is never chosen.

    Returns:
        int32 (C, k), the same on every rank: rows of `glossary`, -1 where there are fewer.
    """
    quiet = not show_progress or rank() > 0
    spelled = [*glossary, *other_spellings(clips, glossary)]
    spelling_ND = encode_by_all_ranks(model, spelled, show_progress=not quiet)
    row_of_spelling = {term.term_id: row for row, term in enumerate(spelled)}
    bank_ND = spelling_ND[: len(glossary)]
    table_CK = np.full((len(clips), k), NO_TERM, np.int32)
    with_terms = np.flatnonzero([bool(ids) for ids in clips.rows.with_format("arrow")["term_ids"].to_pylist()])
    share = with_terms[rank() :: world_size()]
    batches = list(length_buckets(clips.durations[share], batch_size))
    # The bank passes through the cache once for all of them.
    waiting: list[_Batch] = []
    # Wiped when it stands below the bar of the training.
    for batch in Progress(batches, desc="mining negatives", unit="batch", shown=not quiet, leave=None):
        rows = clips.__getitems__([Visit(int(clip), draw=0) for clip in share[batch]])
        said = [[row_of_spelling[identity] for identity in said_in(row) if identity in row_of_spelling] for row in rows]
        waiting.append((share[batch], said, *_embed_queries(model, rows, load_audio, row_of_spelling, spelling_ND)))
        if batch is batches[-1] or sum(len(vectors_PD) for _, _, vectors_PD, *_ in waiting) >= _QUERIES_AT_ONCE:
            clips_C, queries, said = _joined(waiting)
            table_CK[clips_C] = nearest_wrong_terms(*queries, bank_ND, said, k, max_positive_ratio=max_positive_ratio)
            waiting = []
    if world_size() > 1:
        # Rows of other ranks' clips are -1, the least there is.
        shared = torch.from_numpy(table_CK).to(model.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        table_CK = shared.cpu().numpy()
    return table_CK


# Row numbers of its clips, rows of the bank that each says, and the vectors, clips and positive scores of its queries.
_Batch: TypeAlias = tuple[NDArray[np.int64], list[list[int]], torch.Tensor, NDArray[np.int64], torch.Tensor]


def _joined(
    batches: Sequence[_Batch],
) -> tuple[NDArray[np.int64], tuple[torch.Tensor, NDArray[np.int64], torch.Tensor], list[list[int]]]:
    """Batches as one: row numbers of the clips, their queries, and what they say."""
    clips, said, vectors, owners, positives = zip(*batches, strict=True)
    first_clips = np.cumsum([0, *map(len, clips[:-1])])
    owner_P = np.concatenate([owner_P + first for owner_P, first in zip(owners, first_clips, strict=True)])
    return np.concatenate(clips), (torch.cat(vectors), owner_P, torch.cat(positives)), list(itertools.chain(*said))


def _embed_queries(
    model: TermRetrievalModel,
    rows: Sequence[dict[str, Any]],
    load_audio: Callable[[Sequence[dict[str, Any]]], tuple[dict[str, torch.Tensor], torch.Tensor]],
    row_of_spelling: Mapping[int, int],
    spelling_ND: torch.Tensor,
) -> tuple[torch.Tensor, NDArray[np.int64], torch.Tensor]:
    """What clips with terms ask for: vectors (P, D), the clip of each, and its score with what is said there.

    The queries are the spans of the terms, each a group of its own, and all windows of a clip for the terms whose
    span is not known. A query's positive score is the best of its group's: one window holds the term, the others
    need not.
    """
    audio_inputs, num_frames_B = load_audio(rows)
    placed: list[tuple[int, float, float]] = []
    right: list[list[int]] = []
    unplaced: dict[int, list[int]] = {}
    for clip, row in enumerate(rows):
        for identity, start, end in zip(row["spelling_ids"], row["term_starts"], row["term_ends"], strict=True):
            if start is None or end is None:
                unplaced.setdefault(clip, []).append(row_of_spelling[identity])
                continue
            placed.append((clip, start * model.frame_rate, end * model.frame_rate))
            right.append([row_of_spelling[identity]])
    right += unplaced.values()
    of_clip_P, start_P, end_P = model.window_spans(num_frames_B[list(unplaced)])
    windows_P3 = torch.stack([torch.tensor(list(unplaced), dtype=torch.int64)[of_clip_P], start_P, end_P], dim=1)
    span_P3 = torch.cat([torch.tensor(placed, dtype=torch.float64).reshape(-1, 3), windows_P3])
    group_P = torch.cat([torch.arange(len(placed)), of_clip_P + len(placed)])
    order_P = span_P3[:, 0].argsort(stable=True)
    clip_P, start_P, end_P = span_P3[order_P].T
    spans = Spans(clip_P.long(), start_P.float(), end_P.float())
    vectors_PD = model.embed_spans(audio_inputs, spans, as_trained=True)
    positive_P = _best_positives(vectors_PD, group_P[order_P].to(model.device), right, spelling_ND)
    return vectors_PD, span_P3[order_P, 0].long().numpy(), positive_P


def _best_positives(
    vectors_PD: torch.Tensor, group_P: torch.Tensor, right: Sequence[Sequence[int]], spelling_ND: torch.Tensor
) -> torch.Tensor:
    """The best score (P,) of each query's group with a term of its own; `right` names those of each group."""
    column_of = {row: column for column, row in enumerate(dict.fromkeys(itertools.chain(*right)))}
    right_GM = torch.zeros(len(right), len(column_of), dtype=torch.bool)
    for group, rows in enumerate(right):
        right_GM[group, [column_of[row] for row in rows]] = True
    score_PM = (vectors_PD @ spelling_ND[list(column_of)].T).float()
    best_P = score_PM.masked_fill(~right_GM.to(group_P.device)[group_P], -torch.inf).amax(dim=1)
    best_G = best_P.new_full((len(right),), -torch.inf).scatter_reduce(0, group_P, best_P, "amax")
    return best_G[group_P]


def mix_negatives(mined_CK: NDArray[np.int32], alike_CK: NDArray[np.int32], alike_ratio: float) -> NDArray[np.int32]:
    """Each clip's negatives from two sources: `alike_ratio` of the K columns from the second, each term once.

    Where a source has too few, the other fills up.
    """
    k = mined_CK.shape[1]
    num_alike = round(alike_ratio * k)
    order_CK = np.concatenate([alike_CK[:, :num_alike], mined_CK, alike_CK[:, num_alike:]], axis=1)
    table_CK = np.full_like(mined_CK, NO_TERM)
    for row, terms in zip(table_CK, order_CK.tolist(), strict=True):
        chosen = [term for term in dict.fromkeys(terms) if term != NO_TERM][:k]
        row[: len(chosen)] = chosen
    return table_CK
