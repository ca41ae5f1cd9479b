"""Terms to vectors and sounds, a stretch of a glossary at a time, so that memory follows the stretch.

Each stretch is said once, for the text tower and for the phoneme head.

Shapes: T terms, R rows (the ways that terms are said), S spellings, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_term_retrieval.models.evaluation_mode import evaluation_mode
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.models.text_towers.phoneme_encoder import PhonemeEncoder
from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.retrieval.indexes.sounds import Speaker
from qwen_term_retrieval.retrieval.indexing.saying import say_in_stretches
from qwen_term_retrieval.retrieval.looks.second_look import pronunciations_of_terms, warn_of_mute
from qwen_term_retrieval.text.alphabet import Alphabet
from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.text.ways import Ways

STRETCH_TERMS = 32_768
_BATCH_OF_TEXTS = 256


@dataclass(frozen=True, eq=False)
class Embedded:
    """A stretch of terms.

    Args:
        num_rows_T: int32, in how many ways each term is said.
        hashes_S: uint64, what each spelling is known by, see `TermTable`.
        vectors_RD: float32, a row for each way that a term is said.
        sounds: of each term, as classes of the head; None where nobody asked.
    """

    terms: Sequence[Term]
    num_rows_T: NDArray[np.int32]
    hashes_S: NDArray[np.uint64]
    vectors_RD: torch.Tensor
    sounds: Ways | None


class TermEmbedder:
    """A model's text tower and, where sounds are wanted, the alphabet of its phoneme head.

    Args:
        model: the text tower is asked.
        alphabet: None where sounds are not wanted.
        batch_size: spellings embedded at once; None: what suits the tower.
        show_progress: a bar at a terminal, lines in the log where there is none, for what takes a while.
    """

    def __init__(
        self,
        model: TermRetrievalModel,
        alphabet: Alphabet | None = None,
        *,
        batch_size: int | None = None,
        show_progress: bool = False,
    ):
        self.model, self._alphabet = model, alphabet
        self.batch_size, self.show_progress = batch_size, show_progress
        self._said: dict[int, list[NDArray[np.int16]]] = {}

    def stretches(self, terms: Sequence[Term], done: int = 0) -> Iterator[Embedded]:
        """The terms in stretches of `STRETCH_TERMS`, in order, from number `done` on."""
        tower, alphabet = self.model.text_tower, self._alphabet
        pronouncers = [] if alphabet is None else [alphabet.pronouncer]
        # Whose first ways are those of a head that says terms by the same phonemizers.
        if isinstance(tower, PhonemeEncoder) and not (alphabet and tower.pronouncer.agrees(alphabet.pronouncer)):
            pronouncers.append(tower.pronouncer)
        bar = Progress(
            total=len(terms), initial=done, desc="encoding terms", unit="term", shown=self.show_progress, leave=None
        )
        with bar:
            for said in say_in_stretches(terms, pronouncers, STRETCH_TERMS, done):
                own = terms[done : done + len(said.num_rows_T)]
                if isinstance(tower, PhonemeEncoder):
                    vectors_RD = self._embed(tower.inputs(said.ways[-1]))
                else:
                    vectors_RD = self._embed_texts(own)
                sounds = None if alphabet is None else alphabet.classes(said.ways[0]).of_groups(said.num_rows_T)
                if sounds is not None:
                    warn_of_mute(own, sounds.counts_N)
                yield Embedded(own, said.num_rows_T, said.hashes_S, vectors_RD, sounds)
                done += len(own)
                bar.update(len(own))

    def _embed(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        number, device = len(inputs["input_ids"]), self.model.device
        vectors_RD = torch.empty(number, self.model.config.embedding_dim)
        with evaluation_mode(self.model):
            for first in range(0, number, self.batch_size or number):
                rows = slice(first, first + (self.batch_size or number))
                batch = {name: values[rows].to(device) for name, values in inputs.items()}
                vectors_RD[rows] = self.model.embed_texts(**batch).cpu()
        return vectors_RD

    def _embed_texts(self, terms: Sequence[Term]) -> torch.Tensor:
        sayings = [(way, term.language) for term in terms for way in term.sayings]
        ways, languages = [way for way, _ in sayings], [language for _, language in sayings]
        return self.model.encode_terms(ways, batch_size=self.batch_size or _BATCH_OF_TEXTS, languages=languages)

    # ---- for `TermIndex.add` ----------------------------------------------------------------------------------

    def vectors(self, terms: Sequence[Term]) -> torch.Tensor:
        """The vectors of every way that the terms are said; how the terms sound is kept for `speaker`."""
        vectors_RD = torch.empty(sum(len(term.sayings) for term in terms), self.model.config.embedding_dim)
        first = 0
        said: dict[int, list[NDArray[np.int16]]] = {}
        for stretch in self.stretches(terms):
            vectors_RD[first : first + len(stretch.vectors_RD)] = stretch.vectors_RD
            first += len(stretch.vectors_RD)
            if stretch.sounds is not None:
                said.update(zip(map(id, stretch.terms), stretch.sounds.lists(), strict=True))
        self._said = said
        return vectors_RD

    @property
    def speaker(self) -> Speaker | None:
        """Says what `vectors` was asked for as it was said then."""
        if self._alphabet is None:
            return None
        return Speaker(self._say, self._alphabet.num_classes, self._alphabet.fingerprint)

    def _say(self, terms: Sequence[Term]) -> list[list[NDArray[np.int16]]]:
        if self._alphabet is not None and any(id(term) not in self._said for term in terms):
            return pronunciations_of_terms(terms, alphabet=self._alphabet)
        return [self._said[id(term)] for term in terms]
