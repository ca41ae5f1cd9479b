"""Terms to vectors and sounds, a stretch of a glossary at a time, so that memory follows the stretch.

Each stretch is pronounced once, in several processes where that pays, for the text tower and for the phoneme head.

Shapes: R rows (the ways that terms are said), D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.models.text_towers.phoneme_encoder import PhonemeEncoder
from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.retrieval.indexes.sounds import Speaker
from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.text.phoneme_processes import phoneme_processes

STRETCH_TERMS = 16_384
_BATCH_OF_PHONEMES, _BATCH_OF_TEXTS = 16_384, 256


@dataclass(frozen=True, eq=False)
class Embedded:
    """A stretch of terms.

    vectors_RD: float32, a row for each way that a term is said. ways: as classes of the head, None where nobody asked.
    """

    terms: Sequence[Term]
    vectors_RD: torch.Tensor
    ways: list[list[NDArray[np.int16]]] | None


class TermEmbedder:
    """A model's text tower and, where sounds are wanted, who says terms for its phoneme head.

    Args:
        model: the text tower is asked.
        speaker: None where sounds are not wanted.
        batch_size: spellings embedded at once; None: what suits the tower.
        show_progress: a bar at a terminal, lines in the log where there is none, for what takes a while.
    """

    def __init__(
        self,
        model: TermRetrievalModel,
        speaker: Speaker | None = None,
        *,
        batch_size: int | None = None,
        show_progress: bool = False,
    ):
        self.model, self._speaker, self.show_progress = model, speaker, show_progress
        is_small = isinstance(model.text_tower, PhonemeEncoder)
        self.batch_size = batch_size or (_BATCH_OF_PHONEMES if is_small else _BATCH_OF_TEXTS)
        self._said: dict[int, list[NDArray[np.int16]]] = {}

    def stretches(self, terms: Sequence[Term], done: int = 0) -> Iterator[Embedded]:
        """The terms in stretches of `STRETCH_TERMS`, in order, from number `done` on."""
        bar = Progress(
            total=len(terms), initial=done, desc="encoding terms", unit="term", shown=self.show_progress, leave=None
        )
        with phoneme_processes(len(terms) - done), bar:
            for first in range(done, len(terms), STRETCH_TERMS):
                own = terms[first : first + STRETCH_TERMS]
                yield Embedded(own, self._encode(own), None if self._speaker is None else self._speaker.say(own))
                bar.update(len(own))

    def _encode(self, terms: Sequence[Term]) -> torch.Tensor:
        sayings = [(way, term.language) for term in terms for way in term.sayings]
        ways, languages = [way for way, _ in sayings], [language for _, language in sayings]
        return self.model.encode_terms(ways, batch_size=self.batch_size, languages=languages)

    # ---- for `TermIndex.add` ----------------------------------------------------------------------------------

    def vectors(self, terms: Sequence[Term]) -> torch.Tensor:
        """The vectors of every way that the terms are said; how the terms sound is kept for `speaker`."""
        vectors_RD = torch.empty(sum(len(term.sayings) for term in terms), self.model.config.embedding_dim)
        first = 0
        said: dict[int, list[NDArray[np.int16]]] = {}
        for stretch in self.stretches(terms):
            vectors_RD[first : first + len(stretch.vectors_RD)] = stretch.vectors_RD
            first += len(stretch.vectors_RD)
            said.update((id(term), ways) for term, ways in zip(stretch.terms, stretch.ways or (), strict=False))
        self._said = said
        return vectors_RD

    @property
    def speaker(self) -> Speaker | None:
        """Says what `vectors` was asked for as it was said then."""
        if self._speaker is None:
            return None
        return Speaker(self._say, self._speaker.num_classes, self._speaker.alphabet)

    def _say(self, terms: Sequence[Term]) -> list[list[NDArray[np.int16]]]:
        if self._speaker is not None and any(id(term) not in self._said for term in terms):
            return self._speaker.say(terms)
        return [self._said[id(term)] for term in terms]
