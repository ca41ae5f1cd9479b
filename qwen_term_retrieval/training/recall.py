"""Recall during training: ranks share the clips and the terms, and all report the same numbers.

The bank is every term of the training glossary, by all of its spellings, and every term said in the evaluated clips;
see `evaluation/evaluator` for what a pair and its rank are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from qwen_term_retrieval.batching import length_buckets
from qwen_term_retrieval.distributed import gathered, rank, world_size
from qwen_term_retrieval.evaluation.ranked_pairs import RankedPairs, rank_pairs, ranking_metrics
from qwen_term_retrieval.models.phoneme_head import PhonemeHead, best_path
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.runs.sampling import Visit
from qwen_term_retrieval.text.glossary import Glossary, Term
from qwen_term_retrieval.training.data.clips import TrainingClips, languages_of
from qwen_term_retrieval.training.data.texts import encode_by_all_ranks


def evaluate_recall(
    model: TermRetrievalModel,
    clips: TrainingClips,
    load_audio: Callable[[Sequence[dict[str, Any]]], tuple[dict[str, torch.Tensor], torch.Tensor]],
    glossary: Glossary,
    trained_ids: Collection[int],
    batch_size: int,
) -> dict[str, float]:
    """Recall@{1,5,10} and MRR over (clip, term) pairs: of all, of seen and of unseen terms, with their counts.

    With a phoneme head also `phoneme_error_rate`, what it hears by itself against what is said.

    Raises:
        ValueError: no clip holds a term.
    """
    bank = search_bank(glossary, clips)
    spelled = [Term(spelling, term.term_id, language=term.language) for term in bank for spelling in term.spellings]
    bank_ids = [term.term_id for term in spelled]
    bank_ND = encode_by_all_ranks(model, spelled)
    found, sounds = [], np.zeros(2, np.int64)
    share = np.arange(rank(), len(clips), world_size())
    for batch in length_buckets(clips.durations[share], batch_size):
        rows = clips.__getitems__([Visit(int(clip), draw=0) for clip in share[batch]])
        windows = model.embed_windows(*load_audio(rows), as_trained=True, with_phonemes=True)
        if model.phoneme_head is not None and windows.log_probs is not None and windows.num_sub_frames is not None:
            num_sub_frames = windows.num_sub_frames.tolist()
            sounds += count_wrong_sounds(windows.log_probs, num_sub_frames, rows, model.phoneme_head)
        found.append(
            rank_pairs(
                windows.vectors,
                [row["term_ids"] for row in rows],
                bank_ND,
                bank_ids,
                neutral=[row["spoken_ids"] for row in rows],
                window_mask=windows.mask,
            )
        )
    metrics = ranking_metrics(gather_pairs(found), trained_ids, intervals=False)
    wrong, said = sum(gathered(sounds))
    return metrics | ({"phoneme_error_rate": float(wrong / said)} if said else {})


def count_wrong_sounds(
    log_probs_BUC: torch.Tensor, num_sub_frames: Sequence[int], rows: Sequence[dict[str, Any]], head: PhonemeHead
) -> NDArray[np.int64]:
    """Edits from what the phoneme head hears to what is said, and how many sounds are said: int64 (2,).

    Clips of unknown text do not count; of a text that is said in several ways the nearest does.
    """
    known = [clip for clip, row in enumerate(rows) if row["text"].strip()]
    texts = [rows[clip]["text"] for clip in known]
    spoken = head.alphabet.pronunciations(texts, [rows[clip].get("language") for clip in known])
    wrong = said = 0
    for clip, ways in zip(known, spoken, strict=True):
        heard = best_path(log_probs_BUC[clip, : num_sub_frames[clip]])
        edits = [(Levenshtein.distance(heard, way.tolist()), len(way)) for way in ways]
        if edits:
            wrong, said = wrong + min(edits)[0], said + min(edits)[1]
    return np.array([wrong, said])


def search_bank(glossary: Glossary, clips: TrainingClips) -> list[Term]:
    """The terms of the glossary, and those said in the clips that it does not hold."""
    bank = {term.term_id: term for term in glossary}
    ids, terms = (clips.rows.with_format("arrow")[name].to_pylist() for name in ("term_ids", "terms"))
    if not any(ids):
        raise ValueError("no evaluated clip holds a term: there is nothing to find")
    for row_ids, row_terms, language in zip(ids, terms, languages_of(clips.rows), strict=True):
        for identity, text in zip(row_ids, row_terms, strict=True):
            bank.setdefault(identity, Term(text, identity, language=language))
    return list(bank.values())


def gather_pairs(found: list[RankedPairs]) -> RankedPairs:
    """The pairs of all ranks, in an order that does not depend on who ranked them: means are then equal to the bit."""
    pairs = [pair for share in gathered(found) for pair in share]
    ranks = np.concatenate([pair.ranks for pair in pairs])
    term_ids = np.concatenate([pair.term_ids for pair in pairs])
    order = np.lexsort((ranks, term_ids))
    return RankedPairs(ranks[order], term_ids[order])
