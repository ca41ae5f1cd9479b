"""Terms that sound alike, as negatives that no model has to be trained to find.

Two steps, as an inexact search has them: every term becomes a vector of the counts of its one to three consecutive
phonemes, hashed into `_HASHED_DIM` places, whose nearest neighbours by cosine are found exactly; of these, the `k` with
the least edit distance between their phonemes are kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from qwen_term_retrieval.distributed import rank
from qwen_term_retrieval.text.glossary import Glossary, Term
from qwen_term_retrieval.text.pronouncing import Pronouncer
from qwen_term_retrieval.training.data.clips import TrainingClips, other_spellings, said_in
from qwen_term_retrieval.training.negatives.nearest import NO_TERM, nearest_wrong_terms

_HASHED_DIM = 256
_CANDIDATES_A_NEIGHBOUR = 4
_LONGEST_RUN = 3


def sounding_alike(
    clips: TrainingClips, glossary: Glossary, pronouncer: Pronouncer, k: int, *, show_progress: bool = False
) -> NDArray[np.int32]:
    """For each clip, terms that sound like those labelled in it, these taking turns: int32 (C, k), -1 where fewer.

    None of them sounds the same as anything that is said in the clip, labelled or not.
    """
    spelled = [*glossary, *other_spellings(clips, glossary)]
    sounds = sounds_of(spelled, pronouncer)
    neighbours_NK = phonetic_neighbours(sounds[: len(glossary)], k, show_progress=show_progress and rank() == 0)
    row_of_id = {term.term_id: row for row, term in enumerate(spelled)}
    table_CK = np.full((len(clips), k), NO_TERM, np.int32)
    for clip, row in enumerate(clips.rows.select_columns(["term_ids", "spoken_ids", "text_id"])):
        heard = {sounds[row_of_id[identity]] for identity in said_in(row) if identity in row_of_id}
        nearest = neighbours_NK[[row_of_id[identity] for identity in row["term_ids"]]].T.ravel().tolist()
        others = [term for term in dict.fromkeys(nearest) if term != NO_TERM and sounds[term] not in heard][:k]
        table_CK[clip, : len(others)] = others
    return table_CK


def sounds_of(terms: Sequence[Term], pronouncer: Pronouncer) -> list[tuple[str, ...]]:
    """The phonemes of each term in its language, by its first pronunciation."""
    spoken = pronouncer.pronunciations([term.text for term in terms], [term.language for term in terms])
    return [tuple(ways[0]) for ways in spoken]


def phonetic_neighbours(sounds: Sequence[tuple[str, ...]], k: int, *, show_progress: bool = False) -> NDArray[np.int32]:
    """For each term, the `k` others that sound most like it, in whatever language, the nearest first.

    Terms that sound the same are not given: no audio could tell which of them is wrong.

    Args:
        sounds: the phonemes of each of N terms.

    Returns:
        int32 (N, k), rows of `sounds`, -1 where there are fewer.
    """
    vectors_ND = _hashed_runs(sounds)
    neighbours_NC = nearest_wrong_terms(
        vectors_ND,
        np.arange(len(sounds)),
        torch.full((len(sounds),), -torch.inf),
        vectors_ND,
        [[row] for row in range(len(sounds))],
        _CANDIDATES_A_NEIGHBOUR * k,
        show_progress=show_progress,
    )
    table_NK = np.full((len(sounds), k), NO_TERM, np.int32)
    for row, candidates in enumerate(neighbours_NC.tolist()):
        distances = {
            other: Levenshtein.normalized_distance(sounds[row], sounds[other])
            for other in candidates
            if other != NO_TERM and sounds[other] != sounds[row]
        }
        nearest = sorted(distances, key=lambda other: (distances[other], other))[:k]
        table_NK[row, : len(nearest)] = nearest
    return table_NK


def _hashed_runs(sounds: Sequence[Sequence[str]]) -> torch.Tensor:
    """Unit vectors (N, D) of how often each run of one to three phonemes occurs; ends of a term count as phonemes."""
    vectors_ND = np.zeros((len(sounds), _HASHED_DIM), np.float32)
    places: dict[tuple[str, ...], int] = {}
    for row, symbols in enumerate(sounds):
        bounded = ("<", *symbols, ">")
        for length in range(1, _LONGEST_RUN + 1):
            for start in range(len(bounded) - length + 1):
                run = bounded[start : start + length]
                if run not in places:
                    places[run] = zlib.crc32(" ".join(run).encode()) % _HASHED_DIM
                vectors_ND[row, places[run]] += 1
    return torch.nn.functional.normalize(torch.from_numpy(vectors_ND), dim=1)
