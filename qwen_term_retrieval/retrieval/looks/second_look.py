"""Two stages of a search: what is proposed, and what is believed.

The first stage proposes terms for each chunk: by its windows' cosines, by its sounds, or by both. The second listens
again to each proposal, sound by sound, ranks them and says how likely each was said, and where; see
`verification/verifier.py`. Without a phoneme head or a fitted verifier the first stage by windows is all there is.

Shapes: B chunks, W windows, U sub-frames, C classes, P candidates, K candidates of a chunk.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_term_retrieval.errors import VerifierError
from qwen_term_retrieval.models.embeddings import AudioEmbeddings
from qwen_term_retrieval.models.phoneme_head import PhonemeHead
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.indexes.sounds import Speaker
from qwen_term_retrieval.retrieval.looks.first_look import (
    MOST_AGAIN,
    NUM_CANDIDATES,
    match_at,
    nearest_places,
    places_again,
)
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.stream import Chunk
from qwen_term_retrieval.text.alphabet import Alphabet
from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.verification.evidence import Candidates, Evidence, gather_evidence
from qwen_term_retrieval.verification.verifier import Verifier, margins

logger = logging.getLogger(__name__)

FirstStage = Literal["windows", "sounds", "both"]
Verify = Literal["auto", "none", "sounds", "spelling"]
FIRST_STAGES: tuple[str, ...] = ("windows", "sounds", "both")
VERIFY: tuple[str, ...] = ("auto", "none", "sounds", "spelling")
_SPELLINGS_AT_ONCE = 4096
# How far beyond the window that proposed it a term is looked for.
_WIDENED_SECONDS = 0.5
# How many of the terms that a chunk is nearest to are looked for again in it, where their windows are so much farther
# at most. One speaker says a term within .1 of itself.
_TERMS_SAID_AGAIN = 20
_REPEATS_WITHIN = 0.2


@dataclass(frozen=True, eq=False)
class Looked:
    """Candidates of a batch of chunks, each where the chunk owns its end, and what was found about them.

    chunk_P: int64. places_P: int64, in the index. cosines_P: float32. first_P: int64, the sub-frame of the recording
    that its chunk begins with.
    """

    chunk_P: NDArray[np.int64]
    places_P: NDArray[np.int64]
    cosines_P: NDArray[np.float32]
    evidence: Evidence
    first_P: NDArray[np.int64]
    num_chunks: int


class SecondLook:
    """Proposes terms for chunks, and verifies them.

    Args:
        model: with a phoneme head.
        first_stage: who proposes.
        num_candidates: of each chunk, from each who proposes.

    Raises:
        VerifierError: the model has no phoneme head.
        ValueError: a first stage that there is not.
    """

    def __init__(
        self, model: TermRetrievalModel, first_stage: FirstStage = "windows", num_candidates: int = NUM_CANDIDATES
    ):
        if first_stage not in FIRST_STAGES:
            raise ValueError(f"first_stage must be one of {', '.join(FIRST_STAGES)}, not {first_stage!r}")
        if num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, not {num_candidates}")
        self.head = phoneme_head_of(model)
        self.first_stage = first_stage
        self.num_candidates = num_candidates

    @property
    def speaker(self) -> Speaker:
        """Says terms for the phoneme head."""
        alphabet = self.head.alphabet
        return Speaker(partial(pronunciations_of_terms, alphabet=alphabet), alphabet.num_classes, alphabet.fingerprint)

    def pronounce(self, index: TermIndex) -> None:
        """Let an index know how those of its terms sound of which it does not yet."""
        speaker = self.speaker
        index.pronounce(speaker.say, speaker.num_classes, speaker.alphabet)

    def look(
        self, windows: AudioEmbeddings, index: TermIndex, chunks: Sequence[Chunk], *, each_place: bool = True
    ) -> Looked:
        """Propose terms for each chunk, and gather what speaks for them.

        With `each_place`, the likeliest are looked at wherever else in their chunk they may be said again.
        """
        if windows.log_probs is None or windows.num_sub_frames is None:
            raise VerifierError("the chunks were encoded without their sounds")
        log_probs_BUC, num_B = windows.log_probs.float(), windows.num_sub_frames.cpu().numpy()
        candidates = self._propose(windows, log_probs_BUC, num_B, index, chunks, each_place)
        rate, per_frame = self.head.frame_rate, self.head.config.sub_frames
        bank = index.pronunciations_of(np.unique(candidates.owners_P))
        evidence = gather_evidence(log_probs_BUC, num_B, bank, candidates, frame_rate=rate)
        # A term counts for the chunk that owns its end.
        edges_B3 = np.array([(chunk.first_frame, chunk.owned_from, chunk.owned_to) for chunk in chunks])
        first_P, from_P, to_P = edges_B3[candidates.clips_P].T
        ends_P = first_P + evidence.ends_P / per_frame
        own_P = (ends_P > from_P) & (ends_P <= to_P)
        return Looked(
            candidates.clips_P[own_P],
            candidates.owners_P[own_P],
            candidates.cosines_P[own_P],
            evidence.select(own_P),
            (first_P[own_P] * per_frame).astype(np.int64),
            len(chunks),
        )

    def matches(self, looked: Looked, verifier: Verifier, index: TermIndex, top_k: int) -> list[list[TermMatch]]:
        """The likeliest `top_k` terms of each chunk, best first; one that is said again comes again."""
        evidence = looked.evidence
        strengths_P = verifier.strengths_of(evidence.features_PF)
        spans_2P, places_P = (evidence.starts_P, evidence.ends_P), looked.places_P
        margins_P = margins(strengths_P, looked.chunk_P, *spans_2P, index.words(places_P), places_P)
        probability_P = verifier.probabilities(strengths_P, margins_P, len(index))
        if index.has_weights:
            odds_P = probability_P / (1 - probability_P).clip(min=1e-12)
            odds_P *= index.weights(looked.places_P.tolist())
            probability_P = odds_P / (1 + odds_P)
        spans_P2 = (
            np.stack([evidence.starts_P, evidence.ends_P], axis=1) + looked.first_P[:, None]
        ) / self.head.frame_rate
        answers = []
        for chunk in range(looked.num_chunks):
            own = np.flatnonzero(looked.chunk_P == chunk)
            order = _first_terms(own[np.argsort(-probability_P[own], kind="stable")], looked.places_P, top_k)
            columns = (
                values[order].tolist() for values in (looked.places_P, looked.cosines_P, spans_P2, probability_P)
            )
            answers.append(
                [
                    match_at(index, place, cosine, start, end, probability)
                    for place, cosine, (start, end), probability in zip(*columns, strict=True)
                ]
            )
        return answers

    def _propose(
        self,
        windows: AudioEmbeddings,
        log_probs_BUC: torch.Tensor,
        num_B: NDArray[np.int64],
        index: TermIndex,
        chunks: Sequence[Chunk],
        each_place: bool,
    ) -> Candidates:
        """Candidates with the place that each was proposed for, a little widened."""
        rows: list[tuple[int, int, float, float, float]] = []  # chunk, term, cosine, start, end in seconds of the chunk
        first_seconds = [chunk.first_frame * self.head.config.sub_frames / self.head.frame_rate for chunk in chunks]
        if self.first_stage != "sounds":
            rows += _by_windows(windows, index, self.num_candidates, first_seconds, each_place)
        if self.first_stage != "windows":
            known = {row[:2] for row in rows}
            for chunk in range(len(chunks)):
                found = self._by_sounds(windows, log_probs_BUC[chunk, : num_B[chunk]], index, chunk)
                rows += [row for row in found if row[:2] not in known]
            rows.sort(key=lambda row: row[0])
        chunk_P, term_P, cosine_P, start_P, end_P = np.array(rows, np.float64).reshape(-1, 5).T
        clips_P = chunk_P.astype(np.int64)
        rate = self.head.frame_rate
        starts_P = np.floor((start_P - _WIDENED_SECONDS) * rate).astype(np.int64).clip(min=0)
        ends_P = np.minimum(np.ceil((end_P + _WIDENED_SECONDS) * rate).astype(np.int64), num_B[clips_P])
        return Candidates(
            clips_P, term_P.astype(np.int64), cosine_P.astype(np.float32), np.minimum(starts_P, ends_P), ends_P
        )

    def _by_sounds(
        self, windows: AudioEmbeddings, log_probs_UC: torch.Tensor, index: TermIndex, chunk: int
    ) -> list[tuple[int, int, float, float, float]]:
        """Terms that the sounds of a chunk propose, and their cosines."""
        if index.sounds is None:
            raise VerifierError("the index does not know how its terms sound: index the glossary again")
        hits = index.sounds.search(log_probs_UC, self.num_candidates, free=True)
        query_WD = windows.vectors[chunk][windows.mask[chunk].to(windows.vectors.device)]
        cosines = (
            index.cosines(query_WD, hits.terms_K.tolist()).tolist() if len(query_WD) else [-1.0] * len(hits.terms_K)
        )
        spans = np.stack([hits.starts_K, hits.ends_K], axis=1) / self.head.frame_rate
        columns = zip(hits.terms_K.tolist(), cosines, spans.tolist(), strict=True)
        return [(chunk, term, cosine, start, end) for term, cosine, (start, end) in columns]


def phoneme_head_of(model: TermRetrievalModel) -> PhonemeHead:
    """The head that hears sounds.

    Raises:
        VerifierError: the model has none.
    """
    if model.phoneme_head is None:
        raise VerifierError(
            "the model has no phoneme head, so it cannot hear sounds: train one with "
            "`scripts/train.py --recipe phoneme_head --model …`"
        )
    return model.phoneme_head


def verifier_of(model: TermRetrievalModel, verify: Verify) -> Verifier | None:
    """How matches of this model are verified; None where they are not.

    Raises:
        ValueError: a `verify` that there is not.
        VerifierError: the model cannot do what is asked for; or its verifier is of another version.
    """
    if verify not in VERIFY:
        raise ValueError(f"verify must be one of {', '.join(VERIFY)}, not {verify!r}")
    settings = None if model.phoneme_head is None else model.config.verifier
    if verify in ("sounds", "spelling") and settings is None:
        missing = "phoneme head" if model.phoneme_head is None else "fitted verifier"
        remedy = (
            "train one with `scripts/train.py --recipe phoneme_head --model …`"
            if model.phoneme_head is None
            else "`qtr calibrate` fits one"
        )
        raise VerifierError(f"the model has no {missing}: {remedy}, or search with verify='none'")
    return None if verify == "none" or settings is None else Verifier.from_dict(settings)


def pronunciations_of_terms(terms: Sequence[Term], *, alphabet: Alphabet) -> list[list[NDArray[np.int16]]]:
    """Every way to say each term, by all of its spellings; warns of terms that cannot be said."""
    spelled = [(way, term.language, row) for row, term in enumerate(terms) for way in term.sayings]
    ways: list[list[NDArray[np.int16]]] = [[] for _ in terms]
    # A hundred thousand take some ten seconds; the bar is for those who wait, at a terminal.
    with Progress(total=len(spelled), desc="pronouncing", unit="term", delay=2.0, leave=False) as bar:
        for first in range(0, len(spelled), _SPELLINGS_AT_ONCE):
            texts, languages, rows = zip(*spelled[first : first + _SPELLINGS_AT_ONCE], strict=True)
            for row, said in zip(rows, alphabet.pronunciations(texts, languages), strict=True):
                ways[row] += said
            bar.update(len(texts))
    warn_of_mute(terms, np.fromiter(map(len, ways), np.int32, len(ways)))
    return ways


def warn_of_mute(terms: Sequence[Term], counts_T: NDArray[np.int32]) -> None:
    """Warn of terms that cannot be said: of which there are no pronunciations."""
    mute = np.flatnonzero(counts_T == 0)
    if len(mute):
        logger.warning(
            "%d of %d terms have no sound that the phoneme head knows, the first is %r: they are never believed. Give "
            "them an alias that can be said",
            len(mute),
            len(terms),
            terms[mute[0]].text,
        )


def _first_terms(order_P: NDArray[np.int64], places_P: NDArray[np.int64], top_k: int) -> NDArray[np.int64]:
    """The candidates of the first `top_k` terms."""
    _, first = np.unique(places_P[order_P], return_index=True)
    wanted = places_P[order_P[np.sort(first)[:top_k]]]
    return order_P[np.isin(places_P[order_P], wanted)]


def _by_windows(
    windows: AudioEmbeddings,
    index: TermIndex,
    num_candidates: int,
    first_seconds: Sequence[float],
    each_place: bool,
) -> list[tuple[int, int, float, float, float]]:
    """The terms nearest to a window of each chunk."""
    rows = []
    for chunk, found in enumerate(nearest_places(windows, index, num_candidates)):
        first = first_seconds[chunk]
        if each_place:
            likely = found[:_TERMS_SAID_AGAIN]
            least = [score - _REPEATS_WITHIN for _, score, *_ in likely]
            found += places_again(windows, index, chunk, likely, least)[:MOST_AGAIN]
        rows += [(chunk, place, score, start - first, end - first) for place, score, start, end in found]
    return rows
