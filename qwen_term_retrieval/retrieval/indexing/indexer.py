"""Glossaries to indexes of one model: read, checked, embedded, and written or kept."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.models.text_towers.tower import speaker_of
from qwen_term_retrieval.retrieval.index import Hold, TermIndex
from qwen_term_retrieval.retrieval.indexes.building import build_index
from qwen_term_retrieval.retrieval.indexes.folder import check_target
from qwen_term_retrieval.retrieval.indexing.embedding import STRETCH_TERMS, TermEmbedder
from qwen_term_retrieval.retrieval.indexing.fingerprint import model_fingerprint
from qwen_term_retrieval.retrieval.looks.second_look import SecondLook
from qwen_term_retrieval.text.glossary import Glossary, Term
from qwen_term_retrieval.text.pronouncing import check_glossary, speakable

logger = logging.getLogger(__name__)

Terms = Glossary | Iterable[str | Term | Mapping[str, Any]] | str | Path


class GlossaryIndexer:
    """Makes the indexes that a `TermRetriever` searches; its methods of the same names say what is taken and raised.

    Args:
        model: whose text tower embeds.
        second_look: who wants to know how terms sound; None where nobody does.
        batch_size: spellings embedded at once; None: what suits the text tower.
        show_progress: a progress bar at a terminal, lines in the log where there is none.
    """

    def __init__(
        self,
        model: TermRetrievalModel,
        second_look: SecondLook | None,
        *,
        batch_size: int | None = None,
        show_progress: bool = False,
    ):
        self.model, self.second_look = model, second_look
        alphabet = None if second_look is None else second_look.head.alphabet
        self._embedder = TermEmbedder(model, alphabet, batch_size=batch_size, show_progress=show_progress)
        self._speaker = speaker_of(model.text_tower)

    def read(self, terms: Terms) -> Glossary:
        """A glossary without what the model cannot say anything of; see `speakable`."""
        if isinstance(terms, str | Path):
            terms = Glossary.from_file(terms)
        glossary = terms if isinstance(terms, Glossary) else Glossary(terms)
        return glossary if self._speaker is None else speakable(glossary, self._speaker)

    def make(self, glossary: Glossary, hold: Hold) -> TermIndex:
        """An index in memory, where the model is."""
        logger.info("%s: %s", glossary.source, glossary.summary())
        index = self._empty(glossary, hold)
        self.add(index, glossary)
        return index.to(self.model.device)

    def add(self, index: TermIndex, glossary: Glossary) -> list[Term]:
        """Add a glossary to an index, and say what was new."""
        self._check_languages(glossary)
        return index.add(glossary, self._embedder.vectors, self._embedder.speaker)

    def build(self, folder: Path, terms: Terms, hold: Hold, *, overwrite: bool) -> None:
        """An index straight into a folder."""
        check_target(folder, overwrite)
        glossary = self.read(terms)
        logger.info("%s: %s", glossary.source, glossary.summary())
        self._check_languages(glossary)
        index = self._empty(glossary, hold)
        about, speaker = index.about(), self._embedder.speaker
        if speaker is not None:
            about |= {"num_sounds": speaker.num_classes, "alphabet": speaker.alphabet}
        in_order = list(glossary)
        build_index(
            folder,
            in_order,
            about,
            partial(self._embedder.stretches, in_order),
            index.made_quick,
            stretch_terms=STRETCH_TERMS,
            overwrite=overwrite,
        )

    def open(self, folder: str | Path) -> TermIndex:
        """An index that the model made and that was saved, where the model is."""
        index = TermIndex.load(folder, fingerprint=model_fingerprint(self.model)).to(self.model.device)
        if self.second_look is not None:
            self.second_look.pronounce(index)
        return index

    def _empty(self, glossary: Glossary, hold: Hold) -> TermIndex:
        dim, fingerprint = self.model.config.embedding_dim, model_fingerprint(self.model)
        return TermIndex(dim, fingerprint=fingerprint, language=glossary.language, hold=hold)

    def _check_languages(self, glossary: Glossary) -> None:
        if self._speaker is not None:
            check_glossary(glossary, self._speaker)
