"""The hard negatives of a run: mined by the model as it is, kept on disk, read by the collator.

A mining embeds the training clips and the training glossary, every rank its share, and writes one file. `mining` finds
the nearest wrong terms of each batch of clips as soon as it is embedded, so that no more than a batch of queries is in
memory; a share of the columns may come from terms that sound alike instead (`phonetic_negatives`).

Shapes: B clips of a batch, C clips of all, G groups of queries, K negatives, M spellings, N terms, P queries (spans to
pool), D embedding.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from tqdm.auto import tqdm

from qwen_term_retrieval.batching import length_buckets
from qwen_term_retrieval.distributed import rank, sum_over_ranks, world_size
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.text.glossary import Glossary, Term
from qwen_term_retrieval.training.data.clips import TrainingClips, languages_of
from qwen_term_retrieval.training.data.sampling import Visit
from qwen_term_retrieval.training.negatives.nearest import NO_TERM, nearest_wrong_terms
from qwen_term_retrieval.training.resuming import changes

_TERMS_AT_ONCE = 256
_QUERIES_AT_ONCE = 512


class HardNegativeTable:
    """Which terms each training clip is compared with: rows of the training glossary, one memory-mapped file a mining.

    A step uses the last mining that was surely over when its batch was built. Which one that is follows from the step
    alone: batches are built ahead, by a number of steps that the loader's settings bound, and a resumed run must
    compare with the same terms.

    Args:
        folder: of the files, `step_00000500.npy`: int32 (C, K), -1 where a clip has fewer.
        refresh_steps: optimizer steps from one mining to the next.
        lag: steps by which batches are built ahead, at most.
        meaning: what the numbers in the files stand for, see `data_identity`; kept beside them.
    """

    def __init__(self, folder: Path, refresh_steps: int, lag: int, meaning: Mapping[str, str]):
        self.folder = folder
        self.refresh_steps = refresh_steps
        self.lag = lag
        self.meaning = dict(meaning)

    def mined_at(self, step: int) -> int:
        """The step before which the negatives of `step` were mined."""
        return max(0, step - self.lag) // self.refresh_steps * self.refresh_steps

    def __call__(self, clip: int, step: int) -> list[int]:
        """Rows of the glossary that `clip` is compared with in `step`.

        Raises:
            FileNotFoundError: that mining is not there.
        """
        return _open_table(self.folder, self.mined_at(step))[clip].tolist()

    def needed_from(self, step: int) -> list[int]:
        """The minings that `step` and those after it ask for, as far as they are over before `step`."""
        return list(range(self.mined_at(step), step + 1, self.refresh_steps))

    def is_mined(self, step: int) -> bool:
        """Whether the mining just before `step` is there, and what its numbers stand for."""
        return self._path(step).is_file() and self._meaning_path.is_file()

    def check_meaning(self) -> None:
        """See that what was mined earlier, if anything, is of this run's clips and terms.

        Raises:
            ValueError: it is not; says what changed, and the remedy.
        """
        if not self._meaning_path.is_file():
            return
        if changed := changes(json.loads(self._meaning_path.read_text(encoding="utf-8")), self.meaning):
            raise ValueError(
                f"{self.folder}: its hard negatives were mined for other data ({changed}). Resume with the "
                "rows and the glossary of the run that was stopped, or start anew with --overwrite."
            )

    def write(self, step: int, table_CK: NDArray[np.int32]) -> None:
        """Keep what was mined before `step`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._meaning_path) as file:
            file.write(json.dumps(self.meaning, indent=2).encode())
        with atomic_file(self._path(step)) as file:
            np.save(file, table_CK)

    def reopen(self) -> None:
        """Read what was written since, by this process or another."""
        _open_table.cache_clear()

    def _path(self, step: int) -> Path:
        return _table_path(self.folder, step)

    @property
    def _meaning_path(self) -> Path:
        return self.folder / "meaning.json"


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
    for batch in tqdm(batches, desc="mining negatives", unit="batch", disable=quiet, leave=None):
        rows = clips.__getitems__([Visit(int(clip), draw=0) for clip in share[batch]])
        said = [[row_of_spelling[identity] for identity in said_in(row) if identity in row_of_spelling] for row in rows]
        waiting.append((share[batch], said, *_embed_queries(model, rows, load_audio, row_of_spelling, spelling_ND)))
        if batch is batches[-1] or sum(len(vectors_PD) for _, _, vectors_PD, *_ in waiting) >= _QUERIES_AT_ONCE:
            clips_C, queries, said = _joined(waiting)
            table_CK[clips_C] = nearest_wrong_terms(*queries, bank_ND, said, k, max_positive_ratio=max_positive_ratio)
            waiting = []
    model.train(was_training)
    if world_size() > 1:
        # Rows of other ranks' clips are -1, the least there is.
        shared = torch.from_numpy(table_CK).to(model.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        table_CK = shared.cpu().numpy()
    return table_CK


def other_spellings(clips: TrainingClips, glossary: Glossary) -> list[Term]:
    """How labels of the clips are spelled where it is not the spelling that the glossary shows, each once.

    An alias sounds otherwise than its term: what is said is near to how it was spelled.
    """
    shown = {term.term_id for term in glossary}
    others: dict[int, Term] = {}
    columns = [clips.rows.with_format("arrow")[name].to_pylist() for name in ("terms", "spelling_ids")]
    for texts, identities, language in zip(*columns, languages_of(clips.rows), strict=True):
        for text, identity in zip(texts, identities, strict=True):
            if identity not in shown:
                others.setdefault(identity, Term(text, identity, language=language))
    return list(others.values())


def encode_by_all_ranks(
    model: TermRetrievalModel, terms: Sequence[Term], *, show_progress: bool = False
) -> torch.Tensor:
    """Unit vectors (N, D) of terms, each rank embedding its share: to the bit those of `encode_terms`, on every rank.

    The shares are of whole batches: how far a batch is padded shows in the last bit.
    """
    batches = list(length_buckets([len(term.text) for term in terms], _TERMS_AT_ONCE))
    own = [row for batch in batches[rank() :: world_size()] for row in batch]
    vectors_ND = torch.zeros(len(terms), model.config.embedding_dim)
    vectors_ND[own] = model.encode_terms(
        [terms[row].text for row in own],
        batch_size=_TERMS_AT_ONCE,
        show_progress=show_progress,
        languages=[terms[row].language for row in own],
    )
    return sum_over_ranks(vectors_ND.to(model.device))


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
    clip_P, start_P, end_P = span_P3[order_P].to(model.device).T
    inputs = {name: values.to(model.device) for name, values in audio_inputs.items()}
    vectors_PD = model(**inputs, clip_index_P=clip_P.long(), start_P=start_P.float(), end_P=end_P.float()).audio_PD
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


def said_in(row: dict[str, Any]) -> list[int]:
    """Ids of all that is said in a clip, labelled or not, and of the whole of its text: none is a wrong term for it."""
    return sorted({*row["term_ids"], *row["spoken_ids"], row["text_id"]})


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
