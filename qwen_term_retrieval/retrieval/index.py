"""The vectors of a glossary, searched exactly.

`TermIndex` holds one unit vector per spelling. A clip's score for a term is the best over its windows and over the
term's spellings; the search visits the vectors in blocks, so that memory follows the block and not the glossary.
It costs one matrix product: 100 windows against 100,000 terms of 384 dimensions are 8 GFLOP.

On disk an index is a folder: `vectors.npy` (float32, opened by memory map), `terms.parquet` (a row per vector),
`sounds/` (pronunciations, where the model hears sounds) and `meta.json`, which names the model. The folder is written
beside its place and renamed, so it is there whole or not at all.

Shapes: B queries, W windows, N spellings (vectors), K results, D embedding.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyarrow import parquet

from qwen_term_retrieval.retrieval.index_folder import (
    FORMAT,
    FORMAT_VERSION,
    SOUNDS,
    TermIndexError,
    check_target,
    entry_columns,
    group_terms,
    read_meta,
)
from qwen_term_retrieval.retrieval.scoring import BestTerms, blocks_of_scores
from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.text.spellings import SpellingTable, normalize_term
from qwen_term_retrieval.verification.pronunciations import PronunciationBank
from qwen_term_retrieval.verification.sound_index import SoundIndex

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexHits:
    """The K best terms of each query, best first; K is the number of terms where that is less than asked for.

    scores: float32 (B, K). terms: int64 (B, K), positions in `TermIndex.terms`. windows: int64 (B, K), the window
    that scored. All on the CPU.
    """

    scores: torch.Tensor
    terms: torch.Tensor
    windows: torch.Tensor


class TermIndex:
    """Unit vectors of terms and their spellings.

    Args:
        dim: D.
        fingerprint: identity of the model that makes the vectors, see `model_fingerprint`.
        language: of terms that name none; kept for terms that are added later.

    Example:
        >>> index = TermIndex(dim=2, fingerprint="made by hand")
        >>> new = index.add([Term("east", term_id=1), Term("north", term_id=2)], torch.eye(2))
        >>> hits = index.search(torch.tensor([[[0.6, 0.8]]]), top_k=1)
        >>> index.terms[hits.terms[0, 0]].text
        'north'
    """

    def __init__(self, dim: int, *, fingerprint: str, language: str | None = None):
        self.dim = dim
        self.fingerprint = fingerprint
        self.language = language
        self.vectors_ND = torch.zeros(0, dim)
        self._terms: list[Term] = []
        self._term_of_row_N = torch.zeros(0, dtype=torch.int64)
        self._position_of_spelling: SpellingTable | None = SpellingTable()
        self.sounds: SoundIndex | None = None
        self._num_pronounced = 0
        self._alphabet = ""
        self.has_weights = False

    @property
    def terms(self) -> Sequence[Term]:
        return self._terms

    @property
    def device(self) -> torch.device:
        return self.vectors_ND.device

    @property
    def vector_term_ids(self) -> list[int]:
        """The term id of every row of `vectors_ND`."""
        return [self._terms[position].term_id for position in self._term_of_row_N.tolist()]

    @property
    def _most_spellings(self) -> int:
        return int(self._term_of_row_N.bincount().max())

    def __len__(self) -> int:
        return len(self._terms)

    def __repr__(self) -> str:
        return f"<TermIndex of {len(self)} terms, {len(self.vectors_ND)} spellings, {self.dim} dimensions>"

    def __contains__(self, spelling: str) -> bool:
        return self._positions().get(spelling) is not None

    def id_of(self, spelling: str, language: str | None = None) -> int | None:
        """The term id that a spelling or alias belongs to; None where the index does not know it.

        A language that is not known matches any, see `SpellingTable`.
        """
        position = self._positions().get(spelling, language)
        return None if position is None else self._terms[position].term_id

    def ids_of(self, normalized: str) -> list[int]:
        """The ids of all terms that are spelled so in any language; `normalized` as `normalize_term` gives it."""
        return [self._terms[position].term_id for position in self._positions().every(normalized)]

    def to(self, device: torch.device | str) -> TermIndex:
        """Move the vectors; the search runs where they are."""
        self.vectors_ND = self.vectors_ND.to(device)
        self._term_of_row_N = self._term_of_row_N.to(device)
        return self

    # ---- changing it ------------------------------------------------------------------------------------------

    def missing(self, terms: Iterable[Term]) -> list[Term]:
        """The terms of which neither the index nor a term before has a spelling: what `add` would take."""
        return [term for term, new in self._judged(terms) if new]

    def _judged(self, terms: Iterable[Term]) -> Iterator[tuple[Term, bool]]:
        """Every term, and whether it is new."""
        positions, before = self._positions(), SpellingTable()
        for term in terms:
            spelled = [(spelling, term.language) for spelling in term.spellings]
            new = all(table.own(*each) is None for each in spelled for table in (positions, before))
            for each in spelled if new else ():
                before.add(*each, 0)
            yield term, new

    def add(self, terms: Sequence[Term], vectors: torch.Tensor | Callable[[list[Term]], torch.Tensor]) -> list[Term]:
        """Add terms; those that are already there are left as they are.

        Args:
            terms: they may repeat.
            vectors: (N, D), one for each of the terms' `sayings`, in order; or a function that gives those of the
                terms that are new, and of no others.

        Returns:
            The terms that were new.

        Raises:
            ValueError: the number or size of the vectors does not fit, or one is not finite.
        """
        if callable(vectors):
            new = self.missing(terms)
            vectors_ND = self._checked(new, vectors(new))
        else:
            vectors_ND = self._checked(terms, vectors)
            judged = list(self._judged(terms))
            new = [term for term, is_new in judged if is_new]
            keep_N = torch.tensor([is_new for term, is_new in judged for _ in term.sayings], dtype=torch.bool)
            vectors_ND = vectors_ND[keep_N.to(vectors_ND.device)]
        positions, rows = self._positions(), []
        for position, term in enumerate(new, start=len(self._terms)):
            for spelling in term.spellings:
                positions.add(spelling, term.language, position)
            rows += [position] * len(term.sayings)
        self._terms += new
        self.has_weights = self.has_weights or any(term.weight != 1.0 for term in new)
        self.vectors_ND = torch.cat([self.vectors_ND, vectors_ND.to(self.device, torch.float32)])
        self._term_of_row_N = torch.cat([self._term_of_row_N, torch.tensor(rows, dtype=torch.int64).to(self.device)])
        return new

    def _checked(self, terms: Sequence[Term], vectors_ND: torch.Tensor) -> torch.Tensor:
        num_spellings = sum(len(term.sayings) for term in terms)
        if vectors_ND.shape != (num_spellings, self.dim):
            raise ValueError(
                f"{len(terms)} terms with {num_spellings} spellings need vectors "
                f"({num_spellings}, {self.dim}), not {tuple(vectors_ND.shape)}"
            )
        if not bool(vectors_ND.isfinite().all()):
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
        positions = self._positions()
        doomed: set[int] = set()
        for spelling in spellings:
            position = positions.get(spelling, language)
            if position is None:
                raise KeyError(f"{spelling!r} is not in the index of {len(self)} terms")
            doomed.add(position)
            doomed.update(positions.every(normalize_term(spelling)) if language is None else ())
        keep_T = torch.ones(len(self._terms), dtype=torch.bool)
        keep_T[list(doomed)] = False
        keep_N = keep_T.to(self.device)[self._term_of_row_N]
        new_position_T = (torch.cumsum(keep_T, dim=0) - 1).to(self.device)
        self.vectors_ND = self.vectors_ND[keep_N]
        self._term_of_row_N = new_position_T[self._term_of_row_N[keep_N]]
        self._terms = [term for position, term in enumerate(self._terms) if position not in doomed]
        self._position_of_spelling = None
        if self.sounds is not None:
            place_of = np.where(keep_T.numpy(), new_position_T.cpu().numpy(), -1)
            sounds = SoundIndex(self.sounds.num_classes)
            sounds.add(self.pronunciations.renumbered(place_of))
            self._use_sounds(sounds)
        return len(doomed)

    def _positions(self) -> SpellingTable:
        """Spelling → position of its term; made when first needed, since a million terms take seconds."""
        if self._position_of_spelling is None:
            self._position_of_spelling = SpellingTable()
            for position, term in enumerate(self._terms):
                for spelling in term.spellings:
                    self._position_of_spelling.add(spelling, term.language, position)
        return self._position_of_spelling

    def select(self, places: Sequence[int]) -> TermIndex:
        """An index of these terms alone, in their order here; it shares nothing that changes."""
        chosen_T = torch.zeros(len(self), dtype=torch.bool)
        chosen_T[list(places)] = True
        part = TermIndex(self.dim, fingerprint=self.fingerprint, language=self.language)
        place_of_T = chosen_T.cumsum(0) - 1
        rows_N = chosen_T.to(self.device)[self._term_of_row_N]
        part.vectors_ND = self.vectors_ND[rows_N]
        part._term_of_row_N = place_of_T.to(self.device)[self._term_of_row_N[rows_N]]
        part._terms = [term for term, chosen in zip(self._terms, chosen_T.tolist(), strict=True) if chosen]
        part._position_of_spelling = None
        part.has_weights = self.has_weights
        if self.sounds is not None:
            sounds = SoundIndex(self.sounds.num_classes)
            sounds.add(self.pronunciations.renumbered(np.where(chosen_T.numpy(), place_of_T.numpy(), -1)))
            part._use_sounds(sounds)
            part._alphabet = self._alphabet
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
        if self.sounds is not None and (self.sounds.num_classes, self._alphabet) != (num_classes, alphabet):
            logger.warning("the index knows the sounds of another phoneme head: its terms are pronounced anew")
            self.sounds, self._num_pronounced = None, 0
        self._alphabet = alphabet
        sounds = self.sounds or SoundIndex(num_classes)
        if self._num_pronounced < len(self):
            ways = pronounce(self._terms[self._num_pronounced :])
            sounds.add(PronunciationBank.of_owned(ways, num_classes, first_owner=self._num_pronounced))
        self._use_sounds(sounds)

    @cached_property
    def pronunciations(self) -> PronunciationBank:
        """Those of all terms, in their order; raises ValueError where they were never asked for."""
        if self.sounds is None:
            raise ValueError("the index does not know how its terms sound: call `pronounce` first")
        return self.sounds.bank

    def _use_sounds(self, sounds: SoundIndex) -> None:
        self.sounds, self._num_pronounced = sounds, len(self)
        self.__dict__.pop("pronunciations", None)

    # ---- searching --------------------------------------------------------------------------------------------

    def cosines(self, query_WD: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
        """The score that `search` gives each of these terms, float32 on the CPU."""
        wanted = torch.as_tensor(positions, device=self.device)
        rows_N = torch.isin(self._term_of_row_N, wanted).nonzero()[:, 0]
        scores_N = (self.vectors_ND[rows_N] @ query_WD.to(self.device, torch.float32).T).amax(dim=1)
        by_term = torch.full((len(self),), -torch.inf, device=self.device)
        return by_term.scatter_reduce(0, self._term_of_row_N[rows_N], scores_N, "amax")[wanted].cpu()

    @torch.inference_mode()
    def search(self, query_BWD: torch.Tensor, top_k: int = 10, *, mask_BW: torch.Tensor | None = None) -> IndexHits:
        """The `top_k` best terms of each query: exact, equal scores in the order of the index.

        Args:
            query_BWD: unit vectors (B, W, D).
            top_k: at least 1.
            mask_BW: bool, True where a window is real; a query without a window scores -inf everywhere.

        Raises:
            ValueError: an empty index, shapes that do not fit, a query that is not finite.
        """
        self._check_query(query_BWD, top_k, mask_BW)
        num_queries = len(query_BWD)
        query_BWD = query_BWD.to(self.device, torch.float32)
        # Of the best `keep` spellings, at least `top_k` belong to different terms.
        keep = top_k * self._most_spellings
        best = BestTerms.empty(num_queries, self.device, aliases=keep > top_k)
        for rows, scores_BWN in blocks_of_scores(query_BWD, self.vectors_ND, mask_BW):
            scores_BN, window_BN = scores_BWN.max(dim=1)
            term_BN = self._term_of_row_N[rows].expand(num_queries, -1)
            best = best.merge(scores_BN, term_BN, window_BN, keep)
        top_k = min(top_k, len(self))
        return IndexHits(best.scores[:, :top_k].cpu(), best.terms[:, :top_k].cpu(), best.windows[:, :top_k].cpu())

    def _check_query(self, query_BWD: torch.Tensor, top_k: int, mask_BW: torch.Tensor | None) -> None:
        if not len(self):
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

        Raises:
            FileExistsError: the folder exists and `overwrite` is off, or it is something other than an index.
        """
        folder = Path(folder)
        check_target(folder, overwrite)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the final rename stays on one file system.
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            new = Path(scratch) / "new"
            new.mkdir(mode=0o755)
            self._write(new)
            if folder.exists():
                folder.rename(Path(scratch) / "old")
            new.rename(folder)
        return folder

    def _write(self, folder: Path) -> None:
        np.save(folder / "vectors.npy", self.vectors_ND.cpu().numpy())
        owners = self._term_of_row_N.tolist()
        columns = {
            **entry_columns(self._terms),
            "term": pa.array(owners, pa.int64()),
            "term_id": pa.array([self._terms[owner].term_id for owner in owners], pa.int64()),
            "language": pa.array([self._terms[owner].language for owner in owners], pa.string()),
        }
        parquet.write_table(pa.table(columns), folder / "terms.parquet")
        files = ["vectors.npy", "terms.parquet"]
        if self.sounds is not None:
            (folder / SOUNDS).mkdir()
            self.sounds.save(folder / SOUNDS)
            files += sorted(str(path.relative_to(folder)) for path in (folder / SOUNDS).rglob("*.npy"))
        meta = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "model_fingerprint": self.fingerprint,
            "language": self.language,
            "dim": self.dim,
            "num_terms": len(self._terms),
            "num_vectors": len(owners),
            "num_sounds": None if self.sounds is None else self.sounds.num_classes,
            "alphabet": self._alphabet,
            "bytes": {name: (folder / name).stat().st_size for name in files},
        }
        (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())

    @classmethod
    def load(cls, folder: str | Path, *, fingerprint: str | None = None) -> TermIndex:
        """Open an index; the vectors stay on disk until they are searched.

        Args:
            folder: written by `save`.
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
        index = cls(meta["dim"], fingerprint=meta["model_fingerprint"], language=meta["language"])
        # Copy-on-write: torch wants writable memory, and nothing may reach the file.
        index.vectors_ND = torch.from_numpy(np.load(folder / "vectors.npy", mmap_mode="c"))
        columns = parquet.read_table(folder / "terms.parquet").to_pydict()
        index._term_of_row_N = torch.tensor(columns["term"], dtype=torch.int64)
        index._terms = group_terms(columns)
        if (len(index._terms), *index.vectors_ND.shape) != (meta["num_terms"], meta["num_vectors"], meta["dim"]):
            raise TermIndexError(f"{folder}: its files disagree about how many terms there are. Index again.")
        index._position_of_spelling = None
        index.has_weights = any(term.weight != 1.0 for term in index._terms)
        if meta.get("num_sounds") is not None:
            index._use_sounds(SoundIndex.open(folder / SOUNDS, meta["num_sounds"]))
            index._alphabet = meta["alphabet"]
        return index
