"""The hard negatives of a run: mined by the model as it is, kept on disk, read by the collator.

A mining embeds the training clips and the training glossary, every rank its share, and writes one file. `mining` finds
the nearest wrong terms; a share of the columns may come from terms that sound alike instead (`phonetic_negatives`).

Shapes: C clips, K negatives, N terms, Q queries, D embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from tqdm.auto import tqdm

from qwen_term_retrieval.atomic import atomic_file
from qwen_term_retrieval.audio.collate import length_buckets
from qwen_term_retrieval.losses.distributed import rank, world_size
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.training.clips import TrainingClips
from qwen_term_retrieval.training.mining import NO_TERM, nearest_wrong_terms
from qwen_term_retrieval.training.sampling import Visit


class HardNegativeTable:
    """Which terms each training clip is compared with: rows of the training glossary, one memory-mapped file a mining.

    A step uses the last mining that was surely over when its batch was built. Which one that is follows from the step
    alone: batches are built ahead, by a number of steps that the loader's settings bound, and a resumed run must
    compare with the same terms.

    Args:
        folder: of the files, `step_00000500.npy`: int32 (C, K), -1 where a clip has fewer.
        refresh_steps: optimizer steps from one mining to the next.
        lag: steps by which batches are built ahead, at most.
    """

    def __init__(self, folder: Path, refresh_steps: int, lag: int):
        self.folder = folder
        self.refresh_steps = refresh_steps
        self.lag = lag

    def mined_at(self, step: int) -> int:
        """The step before which the negatives of `step` were mined."""
        return max(0, step - self.lag) // self.refresh_steps * self.refresh_steps

    def __call__(self, clip: int, step: int) -> list[int]:
        """Rows of the glossary that `clip` is compared with in `step`.

        Raises:
            FileNotFoundError: that mining is not there.
        """
        return _open_table(self.folder, self.mined_at(step))[clip].tolist()

    def is_mined(self, step: int) -> bool:
        """Whether the mining just before `step` is there."""
        return self._path(step).is_file()

    def write(self, step: int, table_CK: NDArray[np.int32]) -> None:
        """Keep what was mined before `step`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._path(step)) as file:
            np.save(file, table_CK)
        _open_table.cache_clear()

    def _path(self, step: int) -> Path:
        return _table_path(self.folder, step)


def _table_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.npy"


@functools.lru_cache(maxsize=2)
def _open_table(folder: Path, step: int) -> NDArray[np.int32]:
    """By folder and step, and as a plain array: every clip of every batch asks, and paths and memmaps are slow."""
    path = _table_path(folder, step)
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: no such mining of hard negatives. Resume with the hard_neg_refresh_steps and the output_dir of "
            "the run that was stopped, or start anew with --overwrite."
        ) from error


@torch.no_grad()
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
    was_training = model.training
    model.eval()
    bank_ND = model.encode_terms(glossary.texts, languages=glossary.languages).to(model.device)
    row_of_id = {term.term_id: row for row, term in enumerate(glossary)}
    share = np.arange(rank(), len(clips), world_size())
    queries = _Queries(row_of_id, bank_ND)
    batches = list(length_buckets(clips.durations[share], batch_size))
    for batch in tqdm(batches, desc="embedding clips", unit="batch", disable=not show_progress or rank() > 0):
        queries.add(model, clips.__getitems__([Visit(int(clip), draw=0) for clip in share[batch]]), load_audio)
    model.train(was_training)
    table_CK = np.full((len(clips), k), NO_TERM, np.int32)
    table_CK[queries.clips] = nearest_wrong_terms(
        torch.cat(queries.vectors),
        queries.owners,
        torch.cat(queries.positive_scores),
        bank_ND,
        queries.excluded,
        k,
        max_positive_ratio=max_positive_ratio,
        show_progress=show_progress and rank() == 0,
    )
    if world_size() > 1:
        # Rows of other ranks' clips are -1, the least there is.
        shared = torch.from_numpy(table_CK).to(model.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        table_CK = shared.cpu().numpy()
    return table_CK


class _Queries:
    """What a rank asks for: the spans of its clips' terms, or all windows where a span is not known."""

    def __init__(self, row_of_id: dict[int, int], bank_ND: torch.Tensor):
        self.row_of_id = row_of_id
        self.bank_ND = bank_ND
        self.clips: list[int] = []
        self.excluded: list[list[int]] = []
        self.owners: list[int] = []
        self.vectors: list[torch.Tensor] = []
        self.positive_scores: list[torch.Tensor] = []

    def add(self, model: TermRetrievalModel, rows: Sequence[dict[str, Any]], load_audio) -> None:
        audio_inputs, num_frames_B = load_audio(rows)
        spans: list[tuple[int, float, float]] = []
        # A query's positive score is the best of its group's: one window of a clip holds the term, the others need not.
        groups: list[int] = []
        terms: list[list[int]] = []
        for clip, row in enumerate(rows):
            unplaced = []
            for identity, start, end in zip(row["term_ids"], row["term_starts"], row["term_ends"], strict=True):
                if start is None or end is None:
                    unplaced.append(self.row_of_id[identity])
                    continue
                spans.append((clip, start * model.frame_rate, end * model.frame_rate))
                groups.append(len(spans))
                terms.append([self.row_of_id[identity]])
            if unplaced:
                _, start_P, end_P = model.window_spans(num_frames_B[clip : clip + 1])
                groups += [len(spans) + 1] * len(start_P)
                terms += [unplaced] * len(start_P)
                spans += [(clip, start, end) for start, end in zip(start_P.tolist(), end_P.tolist(), strict=True)]
        if not spans:
            return
        inputs = {name: values.to(model.device) for name, values in audio_inputs.items()}
        clip_P, start_P, end_P = (torch.tensor(column, device=model.device) for column in zip(*spans, strict=True))
        vectors_PD = model(**inputs, clip_index_P=clip_P, start_P=start_P.float(), end_P=end_P.float()).audio_PD
        self.vectors.append(vectors_PD)
        self.positive_scores.append(self._best_positives(vectors_PD, groups, terms))
        first = len(self.clips)
        self.owners += [first + clip for clip in clip_P.tolist()]
        self.clips += [row["clip"] for row in rows]
        self.excluded += [
            [self.row_of_id[identity] for identity in said_in(row) if identity in self.row_of_id] for row in rows
        ]

    def _best_positives(self, vectors_PD: torch.Tensor, groups: list[int], terms: list[list[int]]) -> torch.Tensor:
        """The best score (P,) of each query's group with a term of its own."""
        query_Q = torch.tensor([query for query, rows in enumerate(terms) for _ in rows], device=vectors_PD.device)
        term_Q = torch.tensor([row for rows in terms for row in rows], device=vectors_PD.device)
        score_Q = (vectors_PD[query_Q] * self.bank_ND[term_Q]).sum(dim=1).float()
        group_P = torch.tensor(groups, device=vectors_PD.device)
        best_G = score_Q.new_full((int(group_P.max()) + 1,), -torch.inf)
        return best_G.scatter_reduce(0, group_P[query_Q], score_Q, "amax")[group_P]


def said_in(row: dict[str, Any]) -> list[int]:
    """Ids of all that is said in a clip, labelled or not, and of the whole of its text: none is a wrong term for it."""
    return sorted({*row["term_ids"], *row["spoken_ids"], row["text_id"]})


def sounding_alike(
    clips: TrainingClips, glossary: Glossary, neighbours_NK: NDArray[np.int32], k: int
) -> NDArray[np.int32]:
    """For each clip, terms that sound like those said in it, its terms taking turns: int32 (C, k), -1 where fewer.

    Args:
        neighbours_NK: of each term of `glossary`, as `phonetic_neighbours` gives them.
    """
    row_of_id = {term.term_id: row for row, term in enumerate(glossary)}
    table_CK = np.full((len(clips), k), NO_TERM, np.int32)
    for clip, row in enumerate(clips.rows.select_columns(["term_ids", "spoken_ids", "text_id"])):
        said = {row_of_id.get(identity, NO_TERM) for identity in said_in(row)} | {NO_TERM}
        nearest = neighbours_NK[[row_of_id[identity] for identity in row["term_ids"]]].T.ravel().tolist()
        chosen = [term for term in dict.fromkeys(nearest) if term not in said][:k]
        table_CK[clip, : len(chosen)] = chosen
    return table_CK


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
