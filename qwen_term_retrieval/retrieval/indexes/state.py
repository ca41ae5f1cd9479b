"""What an index holds at one moment. A change makes another state, in the place of this one; a search reads one.

Terms have a place, from 0 on and without gaps, in the order in which they were added. Inside, each part keeps its own
numbers, and a removed term keeps its number there until parts are joined.

Shapes: B queries, W windows, T terms, K results, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from qwen_term_retrieval.retrieval.indexes.parts import Part
from qwen_term_retrieval.retrieval.indexes.search import search_part
from qwen_term_retrieval.retrieval.indexes.terms import key_hash, spelling_key
from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.text.languages import ENGLISH, primary_language
from qwen_term_retrieval.text.spellings import normalize_term
from qwen_term_retrieval.verification.pronunciations import PronunciationBank
from qwen_term_retrieval.verification.sound_index import SoundIndex


@dataclass(frozen=True)
class IndexHits:
    """The K best terms of each query, best first; K is the number of terms where that is less than asked for.

    scores: float32 (B, K). terms: int64 (B, K), positions in `TermIndex.terms`. windows: int64 (B, K), the window
    that scored. All on the CPU.
    """

    scores: torch.Tensor
    terms: torch.Tensor
    windows: torch.Tensor


@dataclass(frozen=True, eq=False)
class IndexState:
    """Parts, and which of their terms are removed.

    removed: for each part a mask of its terms, True where one is gone, or None. num_classes: of the phoneme head that
    the terms' sounds are for, None where nobody asked for them; alphabet: the fingerprint of its alphabet.
    """

    parts: tuple[Part, ...] = ()
    removed: tuple[NDArray[np.bool_] | None, ...] = ()
    num_classes: int | None = None
    alphabet: str = ""

    @cached_property
    def _lives(self) -> list[NDArray[np.int64] | None]:
        """Of each part, the numbers of the terms that are there; None where all are."""
        return [None if gone is None else np.flatnonzero(~gone) for gone in self.removed]

    @cached_property
    def _firsts(self) -> NDArray[np.int64]:
        """The place of each part's first term, and the number of all."""
        counts = [len(part) if live is None else len(live) for part, live in zip(self.parts, self._lives, strict=True)]
        return np.cumsum([0, *counts])

    @cached_property
    def place_of(self) -> list[NDArray[np.int64] | None]:
        """Of each part, the place of each of its terms less that of its first, -1 where gone; None: its number."""
        return [None if gone is None else np.where(gone, -1, (~gone).cumsum() - 1) for gone in self.removed]

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @cached_property
    def num_rows(self) -> int:
        return sum(
            part.terms.num_rows - (0 if gone is None else int(part.terms.rows_of(gone).sum()))
            for part, gone in zip(self.parts, self.removed, strict=True)
        )

    def located(self, place: int) -> tuple[int, int]:
        """Part and number of a term; raises IndexError."""
        if not -len(self) <= place < len(self):
            raise IndexError(f"place {place} of {len(self)} terms")
        place %= len(self)
        part = int(np.searchsorted(self._firsts, place, side="right")) - 1
        live = self._lives[part]
        number = place - int(self._firsts[part])
        return part, number if live is None else int(live[number])

    def _places_by_part(
        self, places: Sequence[int] | NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Parts, which of the places lie in each, and the numbers of these terms there."""
        wanted = np.asarray(places, np.int64)
        of_part = np.searchsorted(self._firsts, wanted, side="right") - 1
        for part in np.unique(of_part).tolist():
            own = np.flatnonzero(of_part == part)
            numbers, live = wanted[own] - self._firsts[part], self._lives[part]
            yield part, own, numbers if live is None else live[numbers]

    # ---- what entries say -------------------------------------------------------------------------------------

    @cached_property
    def has_weights(self) -> bool:
        return any(part.terms.weights is not None for part in self.parts)

    def weights(self, places: Sequence[int]) -> NDArray[np.float64]:
        """The weights of these terms."""
        found = np.ones(len(places))
        for part, own, numbers in self._places_by_part(places):
            weights_T = self.parts[part].terms.weights
            if weights_T is not None:
                found[own] = weights_T[numbers]
        return found

    def words(self, places: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The first spelling of each of these terms, as `normalize_term` gives it."""
        found = [""] * len(places)
        for part, own, numbers in self._places_by_part(places):
            terms = self.parts[part].terms
            texts = terms.spellings.take(pa.array(terms.first_spellings_T1[numbers])).to_pylist()
            languages = terms.languages.take(pa.array(numbers)).to_pylist()
            for row, text, language in zip(own.tolist(), texts, languages, strict=True):
                found[row] = normalize_term(text, language)
        return found

    # ---- spellings --------------------------------------------------------------------------------------------

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """Languages, without regions, that terms name."""
        return tuple(sorted({each for part in self.parts for each in part.terms.known_languages}))

    def owners(self, keys: Sequence[str]) -> list[int | None]:
        """The place of the first term with each of these keys, see `spelling_key`; None where there is none."""
        owners: list[int | None] = [None] * len(keys)
        hashes = np.fromiter(map(key_hash, keys), np.uint64, len(keys))
        for number, (part, gone) in enumerate(zip(self.parts, self.removed, strict=True)):
            place_of, first = self.place_of[number], int(self._firsts[number])
            for key, found in enumerate(part.terms.find_all(keys, hashes, gone)):
                if found is not None and owners[key] is None:
                    owners[key] = first + (found if place_of is None else int(place_of[found]))
        return owners

    def twins(self, language: str | None) -> tuple[str | None, ...]:
        """The languages in which a spelling is the same term: English and none are one."""
        primary = primary_language(language)
        if primary not in (None, ENGLISH):
            return (primary,)
        return (None, ENGLISH) if ENGLISH in self.languages else (None,)

    def find(self, spelling: str, language: str | None = None) -> int | None:
        """The place of the term that a spelling most likely stands for, as `SpellingTable.get` has it."""
        primary = primary_language(language)
        asked = (None, *self.languages) if primary is None else (primary, None)
        found = self.owners([spelling_key(spelling, each) for each in asked])
        return next((place for place in found if place is not None), None)

    def every(self, normalized: str) -> list[int]:
        """The places of all terms that are spelled so, in whatever language."""
        keys = [normalized, *(f"{normalized}@{language}" for language in self.languages)]
        return [place for place in self.owners(keys) if place is not None]

    # ---- changes ----------------------------------------------------------------------------------------------

    def with_part(self, part: Part, *, join_below: int = 0) -> IndexState:
        """This and a part more. Parts in memory of fewer rows are joined with what comes after them.

        A part is joined where it is less than twice as large as what follows: so a term is moved as often as the
        number of terms has doubled, and there are few parts.
        """
        parts, removed = [*self.parts], [*self.removed]
        tail: list[Part] = [part]
        gone: list[NDArray[np.bool_] | None] = [None]
        rows = part.terms.num_rows
        while parts and parts[-1].home is None and parts[-1].terms.num_rows < min(2 * rows, join_below):
            rows += parts[-1].terms.num_rows
            tail.insert(0, parts.pop())
            gone.insert(0, removed.pop())
        if len(tail) > 1:
            tail, gone = [Part.join(tail, gone)], [None]
        return replace(self, parts=(*parts, *tail), removed=(*removed, *gone))

    def without(self, places: Iterable[int]) -> IndexState:
        """This less some terms; no vector is moved, and no tree built."""
        removed = list(self.removed)
        for part, _, numbers in self._places_by_part(sorted(places)):
            before = removed[part]
            gone = np.zeros(len(self.parts[part]), np.bool_) if before is None else before.copy()
            gone[numbers] = True
            removed[part] = gone
        return replace(self, removed=tuple(removed)).tidied()

    def tidied(self) -> IndexState:
        """Without the parts of which nothing is left."""
        left = [
            (part, gone) for part, gone in zip(self.parts, self.removed, strict=True) if gone is None or not gone.all()
        ]
        return replace(self, parts=tuple(part for part, _ in left), removed=tuple(gone for _, gone in left))

    def only(self, places: Sequence[int]) -> IndexState:
        """Some terms, in their order here, as one part in memory."""
        kept = np.zeros(len(self), np.bool_)
        kept[list(places)] = True
        removed = []
        for number, part in enumerate(self.parts):
            gone = np.ones(len(part), np.bool_)
            live = self._lives[number]
            own = kept[self._firsts[number] : self._firsts[number + 1]]
            gone[np.flatnonzero(own) if live is None else live[own]] = False
            removed.append(gone)
        return replace(self, parts=(Part.join(self.parts, removed),), removed=(None,)) if self.parts else self

    def to(self, device: torch.device, dtype: torch.dtype) -> IndexState:
        return replace(self, parts=tuple(part.to(device, dtype) for part in self.parts))

    # ---- searching --------------------------------------------------------------------------------------------

    @cached_property
    def vectors(self) -> torch.Tensor:
        """All vectors, in order."""
        kept = [
            part.vectors_RD if gone is None else part.vectors_RD[torch.from_numpy(~part.terms.rows_of(gone))]
            for part, gone in zip(self.parts, self.removed, strict=True)
        ]
        return kept[0] if len(kept) == 1 else torch.cat(kept)

    @property
    def row_ids(self) -> NDArray[np.int64]:
        """The term id of every row of `vectors`."""
        parts = [np.zeros(0, np.int64)]
        for part, gone in zip(self.parts, self.removed, strict=True):
            ids_R = np.asarray(part.terms.term_ids_T)[part.terms.term_of_row]
            parts.append(ids_R if gone is None else ids_R[~part.terms.rows_of(gone)])
        return np.concatenate(parts)

    def search(self, query_BWD: torch.Tensor, mask_BW: torch.Tensor, top_k: int) -> IndexHits:
        """The best terms of each query: exact but in parts with a graph, equal scores in the order of the index."""
        found = [
            search_part(part, query_BWD, mask_BW, gone, top_k)
            for part, gone in zip(self.parts, self.removed, strict=True)
        ]
        top_k = min(top_k, len(self))
        scores_BK = np.full((len(query_BWD), top_k), -np.inf, np.float32)
        terms_BK = np.tile(np.arange(top_k), (len(query_BWD), 1))
        windows_BK = np.zeros((len(query_BWD), top_k), np.int64)
        for query, of_parts in enumerate(zip(*found, strict=True)):
            scores = np.concatenate([hits.scores for hits in of_parts])
            places = np.concatenate([self._places(part, hits.places) for part, hits in enumerate(of_parts)])
            order = np.lexsort((places, -scores))[:top_k]
            scores_BK[query, : len(order)] = scores[order]
            terms_BK[query, : len(order)] = places[order]
            windows_BK[query, : len(order)] = np.concatenate([hits.windows for hits in of_parts])[order]
        return IndexHits(torch.from_numpy(scores_BK), torch.from_numpy(terms_BK), torch.from_numpy(windows_BK))

    def _places(self, part: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        place_of = self.place_of[part]
        return self._firsts[part] + (numbers if place_of is None else place_of[numbers])

    def cosines_by_window(self, query_WD: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        """What each window scores with each of these terms, (W, T) float32 on the CPU."""
        scores_TW = torch.full((len(places), len(query_WD)), -torch.inf)
        for part, own, numbers in self._places_by_part(places):
            rows, of_term = self.parts[part].rows_of_terms(numbers)
            vectors_KD = self.parts[part].vectors_of(torch.from_numpy(rows))
            scores_RW = (vectors_KD @ query_WD.to(vectors_KD.device, vectors_KD.dtype).T).float().cpu()
            term_RW = torch.from_numpy(own[of_term])[:, None].expand_as(scores_RW)
            scores_TW.scatter_reduce_(0, term_RW, scores_RW, "amax")
        return scores_TW.T

    # ---- sounds -----------------------------------------------------------------------------------------------

    @cached_property
    def sounds(self) -> SoundIndex | None:
        """The prefix trees of all parts; what is removed is not found."""
        sounds = [part.sounds for part in self.parts if part.sounds is not None]
        if self.num_classes is None or len(sounds) < len(self.parts):
            return None
        if not sounds:
            return SoundIndex(self.num_classes)
        firsts = np.cumsum([0, *map(len, self.parts)]).tolist()
        banks = [
            each.bank if not first else each.bank.renumbered(np.arange(first, first + len(part)))
            for each, first, part in zip(sounds, firsts, self.parts, strict=False)
        ]
        place_of = np.concatenate([self._places_or_gone(part) for part in range(len(self.parts))])
        all_there = all(gone is None for gone in self.removed)
        return SoundIndex.of_parts(
            self.num_classes,
            [(bank, each.tree) for bank, each in zip(banks, sounds, strict=True)],
            None if all_there else place_of,
        )

    def _places_or_gone(self, part: int) -> NDArray[np.int64]:
        place_of = self.place_of[part]
        if place_of is None:
            return np.arange(len(self.parts[part])) + self._firsts[part]
        return np.where(place_of < 0, -1, place_of + self._firsts[part])

    def pronunciations_of(self, places: NDArray[np.int64]) -> PronunciationBank:
        """The pronunciations of some terms, owned by their places, which ascend.

        Raises:
            ValueError: nobody asked for them yet.
        """
        unknown = ValueError("the index does not know how its terms sound: call `pronounce` first")
        if self.num_classes is None:
            raise unknown
        banks = []
        for part, own, numbers in self._places_by_part(places.tolist()):
            sounds = self.parts[part].sounds
            if sounds is None:
                raise unknown
            banks.append(sounds.of_terms(numbers, places[own]))
        bank = banks[0] if banks else PronunciationBank.of([], self.num_classes)
        for other in banks[1:]:
            bank = bank.join(other)
        return bank


class TermsOf(Sequence[Term]):
    """The terms of a state, made when they are asked for."""

    def __init__(self, state: IndexState):
        self._state = state

    def __len__(self) -> int:
        return len(self._state)

    @overload
    def __getitem__(self, place: int) -> Term: ...

    @overload
    def __getitem__(self, place: slice) -> list[Term]: ...

    def __getitem__(self, place: int | slice) -> Term | list[Term]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        part, number = self._state.located(int(place))
        return self._state.parts[part].terms[number]

    def __iter__(self) -> Iterator[Term]:
        for part, gone in zip(self._state.parts, self._state.removed, strict=True):
            for number, term in enumerate(part.terms):
                if gone is None or not gone[number]:
                    yield term

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} terms>"
