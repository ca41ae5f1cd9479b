"""The vectors of a glossary, under changes and from many threads.

`TermIndex` holds one unit vector per spelling. A clip's score for a term is the best over its windows and over the
term's spellings. What an index holds is an immutable `IndexState`; a change makes another under a lock and puts it in
the place of the first, so that a search, which takes no lock, sees one state from its start to its end.

How vectors are held follows from how many there are, or from `hold`:

| `hold` | in memory | a search |
|---|---|---|
| `float32` | float32, and from 4,096 rows on the first axes in int8 | exact; what cannot be a best is skipped |
| `int8` | all axes in int8; float32 in a file, of which a few hundred rows are read | exact |
| `ann` | int8 in a graph (usearch); float32 in a file | what the walks come by, scored exactly |
| `auto` | `float32` up to 256 MiB of vectors, `int8` beyond | exact |

On a GPU every row is scored, in the type that `to` was given.

Shapes: B queries, W windows, R rows (spellings), T terms, K results, D embedding.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_term_retrieval.retrieval.indexes.folder import TermIndexError, open_state, read_meta, write_index
from qwen_term_retrieval.retrieval.indexes.graph import usearch_index
from qwen_term_retrieval.retrieval.indexes.holding import Hold, held, made_quick
from qwen_term_retrieval.retrieval.indexes.newcomers import told_apart
from qwen_term_retrieval.retrieval.indexes.parts import Part
from qwen_term_retrieval.retrieval.indexes.sounds import Speaker
from qwen_term_retrieval.retrieval.indexes.state import IndexHits, IndexState, TermsOf
from qwen_term_retrieval.retrieval.indexes.terms import TermTable, key_hash
from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.text.spellings import normalize_term
from qwen_term_retrieval.verification.pronunciations import PronunciationBank
from qwen_term_retrieval.verification.sound_index import SoundIndex

__all__ = ["Hold", "IndexHits", "TermIndex", "TermIndexError"]

logger = logging.getLogger(__name__)

_JOIN_BELOW_ROWS = 1 << 16


class TermIndex:
    """Unit vectors of terms and their spellings.

    Args:
        dim: D.
        fingerprint: identity of the model that makes the vectors, see `model_fingerprint`.
        language: of terms that name none; kept for terms that are added later.
        hold: how vectors are held, see the module.

    Raises:
        ValueError: a `hold` that there is not. ImportError: `ann` without usearch.

    Example:
        >>> index = TermIndex(dim=2, fingerprint="made by hand")
        >>> new = index.add([Term("east", term_id=1), Term("north", term_id=2)], torch.eye(2))
        >>> hits = index.search(torch.tensor([[[0.6, 0.8]]]), top_k=1)
        >>> index.terms[hits.terms[0, 0]].text
        'north'
    """

    def __init__(self, dim: int, *, fingerprint: str, language: str | None = None, hold: Hold = "auto"):
        if hold not in get_args(Hold):
            raise ValueError(f"hold must be one of {', '.join(get_args(Hold))}, not {hold!r}")
        if hold == "ann":
            usearch_index()
        self.dim = dim
        self.fingerprint = fingerprint
        self.language = language
        self.hold: Hold = hold
        self.device = torch.device("cpu")
        self._dtype = torch.float32
        self._state = IndexState()
        self._writing = threading.RLock()

    @property
    def has_weights(self) -> bool:
        """Whether an entry has a weight of its own."""
        return self._state.has_weights

    def weights(self, places: Sequence[int]) -> NDArray[np.float64]:
        """What each of these terms' entry says that its odds are multiplied by."""
        return self._state.weights(places)

    def words(self, places: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The words of each of these terms, as `normalize_term` gives them."""
        return self._state.words(places)

    def snapshot(self) -> TermIndex:
        """The index as it is now, at no cost: nothing that is done to this one afterwards is seen there."""
        return self._like(self._state)

    def _like(self, state: IndexState) -> TermIndex:
        other = TermIndex(self.dim, fingerprint=self.fingerprint, language=self.language, hold=self.hold)
        other.device, other._dtype, other._state = self.device, self._dtype, state
        return other

    @property
    def terms(self) -> Sequence[Term]:
        return TermsOf(self._state)

    @property
    def vectors_ND(self) -> torch.Tensor:  # noqa: N802
        """All vectors, a row for each way that a term is said, in the order of the terms."""
        return self._state.vectors if self._state.parts else torch.zeros(0, self.dim)

    @property
    def vector_term_ids(self) -> list[int]:
        """The term id of every row of `vectors_ND`."""
        return self._state.row_ids.tolist()

    @property
    def held(self) -> str:
        """How the vectors are held, in words."""
        if self.device.type != "cpu":
            return f"{str(self._dtype).removeprefix('torch.')} on {self.device}"
        return held(self._state.parts)

    def __len__(self) -> int:
        return len(self._state)

    def __repr__(self) -> str:
        state = self._state
        said = f"{len(state)} terms, said in {state.num_rows} ways"
        return f"<TermIndex of {said}, {self.dim} dimensions, held in {self.held}>"

    def __contains__(self, spelling: str) -> bool:
        return self._state.find(spelling) is not None

    def id_of(self, spelling: str, language: str | None = None) -> int | None:
        """The term id that a spelling or alias belongs to; None where the index does not know it.

        A language that is not known matches any, see `SpellingTable`.
        """
        state = self._state
        place = state.find(spelling, language)
        return None if place is None else TermsOf(state)[place].term_id

    def ids_of(self, normalized: str) -> list[int]:
        """The ids of all terms that are spelled so in any language; `normalized` as `normalize_term` gives it."""
        state = self._state
        return [TermsOf(state)[place].term_id for place in state.every(normalized)]

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> TermIndex:
        """Move the vectors; the search runs where they are. On a GPU they may be of half precision."""
        with self._writing:
            self.device = torch.device(device)
            self._dtype = dtype if self.device.type != "cpu" else torch.float32
            if self.device.type != "cpu" or any(part.vectors_RD.device.type != "cpu" for part in self._state.parts):
                self._state = self._state.to(self.device, self._dtype)
        return self

    # ---- changing it ------------------------------------------------------------------------------------------

    def missing(self, terms: Iterable[Term]) -> list[Term]:
        """The terms of which neither the index nor a term before has a spelling: what `add` would take."""
        return [term for term, new, _ in told_apart(terms, self._state) if new]

    def add(
        self,
        terms: Sequence[Term],
        vectors: torch.Tensor | Callable[[list[Term]], torch.Tensor],
        speaker: Speaker | None = None,
    ) -> list[Term]:
        """Add terms; those that are already there are left as they are. They appear all at once, with their sounds.

        Args:
            terms: they may repeat.
            vectors: (N, D), one for each of the terms' `sayings`, in order; or a function that gives those of the
                terms that are new, and of no others.
            speaker: says how terms sound; None leaves terms without sounds until `pronounce`.

        Returns:
            The terms that were new.

        Raises:
            ValueError: the number or size of the vectors does not fit, or one is not finite.
        """
        if callable(vectors):
            # Embedded outside of the lock; what another thread has added meanwhile is left out below.
            terms = self.missing(terms)
            vectors = vectors(terms)
        vectors_RD = self._checked(terms, vectors)
        sounds = speaker.sounds_of(terms) if speaker is not None and len(terms) else None
        with self._writing:
            judged = list(told_apart(terms, self._state))
            new = [term for term, is_new, _ in judged if is_new]
            if not new:
                return []
            hashes = [key_hash(key) for _, is_new, own in judged if is_new for key in own]
            keep_R = torch.tensor([is_new for term, is_new, _ in judged for _ in term.sayings], dtype=torch.bool)
            if not keep_R.all():
                vectors_RD = vectors_RD[keep_R.to(vectors_RD.device)]
                sounds = speaker.sounds_of(new) if speaker is not None else None
            part = Part(
                TermTable.of(new, np.array(hashes, np.uint64)), vectors_RD.to(self.device, self._dtype), sounds=sounds
            )
            state = self._state if speaker is None else self._heard_as(speaker)
            self._put(state.with_part(part, join_below=_JOIN_BELOW_ROWS))
        return new

    def _put(self, state: IndexState) -> None:
        """Make this the state; a part that has become large gets what makes it quick."""
        if state.parts and (last := state.parts[-1]).home is None:
            state = replace(state, parts=(*state.parts[:-1], self.made_quick(last)))
        self._state = state

    def made_quick(self, part: Part) -> Part:
        """The part with what makes it quick, where it is large: what that is follows from `hold`."""
        return made_quick(part, self.hold) if self.device.type == "cpu" else part

    def _checked(self, terms: Sequence[Term], vectors_ND: torch.Tensor) -> torch.Tensor:
        num_spellings = sum(len(term.sayings) for term in terms)
        if vectors_ND.shape != (num_spellings, self.dim):
            raise ValueError(
                f"{len(terms)} terms with {num_spellings} spellings need vectors "
                f"({num_spellings}, {self.dim}), not {tuple(vectors_ND.shape)}"
            )
        if not all(bool(block.isfinite().all()) for block in vectors_ND.split(1 << 16)):
            raise ValueError("a term vector is not finite; was the model trained to NaN?")
        return vectors_ND

    def remove(self, spellings: Iterable[str], language: str | None = None) -> int:
        """Remove the terms that these spellings (or aliases) belong to; all of a term's spellings go.

        Args:
            language: of the terms to remove; without it, a spelling goes in every language.

        Returns:
            How many terms were removed.

        Raises:
            KeyError: a spelling is not in the index; nothing is removed then.
            ValueError: a bare string.
        """
        if isinstance(spellings, str):
            raise ValueError(f"{spellings!r} is one string; one term is a list of one: [{spellings!r}]")
        with self._writing:
            state, doomed = self._state, set[int]()
            for spelling in spellings:
                place = state.find(spelling, language)
                if place is None:
                    raise KeyError(f"{spelling!r} is not in the index of {len(state)} terms")
                doomed.add(place)
                doomed.update(state.every(normalize_term(spelling)) if language is None else ())
            if doomed:
                self._state = state.without(doomed)
        return len(doomed)

    def select(self, places: Sequence[int]) -> TermIndex:
        """An index of these terms alone, in their order here; it shares nothing that changes."""
        part = self._like(IndexState())
        part._put(self._state.only(places).tidied())
        return part

    # ---- how its terms sound ----------------------------------------------------------------------------------

    def pronounce(
        self, pronounce: Callable[[list[Term]], list[list[NDArray[np.int16]]]], num_classes: int, alphabet: str = ""
    ) -> None:
        """Have the pronunciations of all terms that have none yet; a search by sounds goes through them.

        Args:
            pronounce: terms -> every way to say each, as classes of a phoneme head; a term may have none.
            num_classes: of the head.
            alphabet: the fingerprint of the head's alphabet; those of another are forgotten.
        """
        speaker = Speaker(lambda terms: pronounce(list(terms)), num_classes, alphabet)
        with self._writing:
            state = self._heard_as(speaker)
            parts = [
                replace(part, sounds=speaker.sounds_of(list(part.terms)), home=None) if part.sounds is None else part
                for part in state.parts
            ]
            self._state = replace(state, parts=tuple(parts))

    def _heard_as(self, speaker: Speaker) -> IndexState:
        """The state without the sounds of another head."""
        state, known = self._state, (speaker.num_classes, speaker.alphabet)
        if state.num_classes is not None and (state.num_classes, state.alphabet) != known:
            logger.warning("the index knows the sounds of another phoneme head: its terms are pronounced anew")
            state = replace(state, parts=tuple(replace(part, sounds=None, home=None) for part in state.parts))
        return replace(state, num_classes=speaker.num_classes, alphabet=speaker.alphabet)

    @property
    def sounds(self) -> SoundIndex | None:
        """The pronunciations in prefix trees; None where they were never asked for."""
        return self._state.sounds

    @property
    def pronunciations(self) -> PronunciationBank:
        """Those of all terms, in their order; raises ValueError where they were never asked for."""
        return self.pronunciations_of(np.arange(len(self)))

    def pronunciations_of(self, places: NDArray[np.int64]) -> PronunciationBank:
        """Those of some terms, owned by their places, which ascend; raises ValueError as `pronunciations`."""
        return self._state.pronunciations_of(places)

    # ---- searching --------------------------------------------------------------------------------------------

    def cosines(self, query_WD: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
        """The score that `search` gives each of these terms, float32 on the CPU."""
        return self.cosines_by_window(query_WD, positions).amax(dim=0)

    def cosines_by_window(self, query_WD: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
        """What each window scores with each of these terms, (W, N) float32 on the CPU."""
        return self._state.cosines_by_window(query_WD, positions)

    @torch.inference_mode()
    def search(self, query_BWD: torch.Tensor, top_k: int = 10, *, mask_BW: torch.Tensor | None = None) -> IndexHits:
        """The `top_k` best terms of each query, equal scores in the order of the index; exact but with `hold="ann"`.

        Args:
            query_BWD: unit vectors (B, W, D).
            top_k: at least 1.
            mask_BW: bool, True where a window is real; a query without a window scores -inf everywhere.

        Raises:
            ValueError: an empty index, shapes that do not fit, a query that is not finite.
        """
        state = self._state
        self._check_query(state, query_BWD, top_k, mask_BW)
        mask_BW = torch.ones(query_BWD.shape[:2], dtype=torch.bool) if mask_BW is None else mask_BW.cpu()
        return state.search(query_BWD.cpu().float(), mask_BW, top_k)

    def _check_query(
        self, state: IndexState, query_BWD: torch.Tensor, top_k: int, mask_BW: torch.Tensor | None
    ) -> None:
        if not len(state):
            raise ValueError("the index holds no term; add terms before searching")
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        if query_BWD.ndim != 3 or query_BWD.shape[1] < 1 or query_BWD.shape[2] != self.dim:
            raise ValueError(f"expected query vectors (B, W, {self.dim}), not {tuple(query_BWD.shape)}")
        if mask_BW is not None and mask_BW.shape != query_BWD.shape[:2]:
            raise ValueError(f"mask {tuple(mask_BW.shape)} does not fit queries {tuple(query_BWD.shape)}")
        if not bool(query_BWD.isfinite().all()):
            raise ValueError("a query vector is not finite; was the model trained to NaN?")

    # ---- on disk ----------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the index to `folder`, whole or not at all.

        In the folder that it was opened from or saved to before, `overwrite` writes what is new and rewrites no vector;
        in another, all parts become one and what was removed is gone.

        Raises:
            FileExistsError: the folder exists and `overwrite` is off, or it is something other than an index.
        """
        folder = Path(folder)
        with self._writing:
            state = self._state
            if not any(
                part.home is not None and part.home.parent.resolve() == folder.resolve() for part in state.parts
            ):
                state = self._made_one(state)
            self._state = write_index(folder, state, self.about(), overwrite=overwrite)
        return folder

    def _made_one(self, state: IndexState) -> IndexState:
        """All terms as one part."""
        if len(state.parts) <= 1 and all(gone is None for gone in state.removed):
            return state
        whole = self.made_quick(Part.join(state.parts, state.removed))
        return replace(state, parts=(whole,), removed=(None,))

    def about(self) -> dict[str, object]:
        """What `meta.json` says of an index beside its files."""
        return {
            "model_fingerprint": self.fingerprint,
            "language": self.language,
            "dim": self.dim,
            "hold": self.hold,
            "num_sounds": self._state.num_classes,
            "alphabet": self._state.alphabet,
        }

    @classmethod
    def load(cls, folder: str | Path, *, fingerprint: str | None = None) -> TermIndex:
        """Open an index; the vectors stay on disk until they are searched.

        Args:
            folder: written by `save` or `qtr index`.
            fingerprint: of the model that will search; None opens any index.

        Raises:
            FileNotFoundError: no such folder.
            TermIndexError: not an index, incomplete, of a later version, or made with another model.
        """
        folder = Path(folder)
        meta = read_meta(folder)
        if fingerprint is not None and meta["model_fingerprint"] != fingerprint:
            raise TermIndexError(
                f"{folder} was made with another model, or by an earlier version (fingerprint "
                f"{meta['model_fingerprint'][:12]}, this model has {fingerprint[:12]}): scores would be meaningless. "
                "Index the glossary again with this model."
            )
        hold = meta.get("hold", "auto")
        index = cls(meta["dim"], fingerprint=meta["model_fingerprint"], language=meta["language"], hold=hold)
        sounds = {"num_classes": meta.get("num_sounds"), "alphabet": meta.get("alphabet", "")}
        index._state = replace(open_state(folder, meta), **sounds)
        return index
