"""Terms of a glossary, found in speech.

`TermRetriever` joins a `TermRetrievalModel` and a `TermIndex`: audio is cut into windows, each window is a vector, and
a term's score is its best window's, whose span says where the term is. It costs the audio tower plus one matrix
product, and a lecture needs no more memory than a sentence.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE, clip_blocks
from qwen_term_retrieval.errors import VerifierError
from qwen_term_retrieval.models.placing import placed_model
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.retrieval.calibration import fits_glossary
from qwen_term_retrieval.retrieval.encoding import ChunkBar, ClipEncoder, Windows, clips_of
from qwen_term_retrieval.retrieval.hearing import Hearer
from qwen_term_retrieval.retrieval.index import Hold, TermIndex
from qwen_term_retrieval.retrieval.indexing.indexer import GlossaryIndexer, Terms
from qwen_term_retrieval.retrieval.looks.second_look import FirstStage, SecondLook, Verify, verifier_of
from qwen_term_retrieval.retrieval.looks.spelling_look import SpellingLook
from qwen_term_retrieval.retrieval.matches import BestOfEach, TermMatch
from qwen_term_retrieval.retrieval.stream import Chunk, live_pcm
from qwen_term_retrieval.text.glossary import Glossary, Term
from qwen_term_retrieval.verification.verifier import Verifier

logger = logging.getLogger(__name__)


class TermRetriever:
    """Search speech for the terms of a glossary.

    A model with a phoneme head and a fitted verifier listens again to what its windows propose, and gives each match a
    probability and exact times; one without answers with cosines.

    Args:
        model: a trained model.
        windows: the grid that clips are searched with, see `ClipEncoder`: "auto", "clip", or sizes and a stride.
        verify: "auto" verifies where the model can; "sounds" refuses a model that cannot; "spelling" asks the decoder
            of a Whisper tower as well, which tells homophones apart and takes far longer; "none" answers with cosines.
        first_stage: who proposes the terms that are verified: "windows", "sounds" (the whole glossary by its
            pronunciations, without a vector) or "both".

    Example:
        >>> retriever = TermRetriever.from_pretrained()                               # doctest: +SKIP
        >>> retriever.index(["atrial fibrillation", "myocardial infarction"])         # doctest: +SKIP
        >>> retriever.search("clip.wav", top_k=1)                                     # doctest: +SKIP
        [TermMatch(term='atrial fibrillation', score=0.83, start=0.4, end=1.6)]
    """

    def __init__(
        self,
        model: TermRetrievalModel,
        *,
        windows: Windows = "auto",
        verify: Verify = "auto",
        first_stage: FirstStage = "windows",
    ):
        self.model = model
        self.encoder = ClipEncoder(model, windows)
        self.verifier = verifier_of(model, verify)
        self.second_look = SecondLook(model, first_stage) if self.verifier is not None else None
        if self.verifier is None and first_stage != "windows":
            raise VerifierError(
                f"first_stage={first_stage!r} proposes terms to be verified, and this model verifies none"
            )
        self.spelling_look = SpellingLook(model) if verify == "spelling" else None
        self._index: TermIndex | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | TermRetrievalModel | None = None,
        *,
        revision: str | None = None,
        windows: Windows = "auto",
        verify: Verify = "auto",
        first_stage: FirstStage = "windows",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> TermRetriever:
        """Load a model by folder, Hub id or name (or take a loaded one) and put it on `device`; default: a GPU if any.

        Without a model, the default one of those that came along; `qtr models` lists their names.

        `dtype`: "float32", "bfloat16" or "float16"; default: as it is. Half precision halves memory, and is fast on
        GPUs and, as bfloat16, on processors with units for it (AMX, AVX512-BF16); scores change in the third place.

        LoRA of a model that is loaded here is folded into its weights, see `fold_lora`; a loaded one stays as it is.

        `revision`: a tag, branch or commit on the Hub, such as `best` or `step-600`; `qtr models ID` lists them.

        Raises:
            ValueError: a revision of a folder, or of a loaded model; a device that there is not here, or no dtype.
            VerifierError: what is asked for, the model cannot do.
        """
        loaded = placed_model(model, revision=revision, device=device, dtype=dtype)
        return cls(loaded, windows=windows, verify=verify, first_stage=first_stage)

    def __repr__(self) -> str:
        return f"<TermRetriever: {self._index or 'no glossary'}, threshold {self.threshold}>"

    @property
    def threshold(self) -> float | None:
        """What a match must reach: a probability where matches are verified, else the calibrated cosine, if any.

        It is kept in the model's config.
        """
        return self.model.config.threshold if self.verifier is None else self.verifier.threshold

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        if self.verifier is None:
            self.model.config.threshold = value
        elif value is not None:
            self.use_verifier(replace(self.verifier, threshold=value))

    def threshold_for(
        self, target_precision: float | None = None, max_false_alarms_per_hour: float | None = None
    ) -> float | None:
        """The probability that kept these when the verifier was fitted; None where nothing is asked for.

        Raises:
            VerifierError: matches are not verified; or nothing kept them.
        """
        if target_precision is None and max_false_alarms_per_hour is None:
            return None
        if self.verifier is None:
            raise VerifierError(
                "a cosine promises no precision: that takes a model with a phoneme head, and `qtr calibrate`"
            )
        return self.verifier.threshold_for(precision=target_precision, false_alarms_per_hour=max_false_alarms_per_hour)

    def use_verifier(self, verifier: Verifier) -> None:
        """Verify with this one from now on; the model's config keeps it."""
        self.second_look = self.second_look or SecondLook(self.model)
        self.verifier, self.model.config.verifier = verifier, verifier.to_dict()

    # ---- the glossary -----------------------------------------------------------------------------------------

    @property
    def term_index(self) -> TermIndex:
        """The glossary that is searched; raises RuntimeError where none is indexed."""
        if self._index is None:
            raise RuntimeError("no glossary is indexed: call `.index(terms)` or `.load_index(folder)` first")
        return self._index

    def index(
        self,
        terms: Terms,
        *,
        hold: Hold = "auto",
        batch_size: int | None = None,
        show_progress: bool = True,
    ) -> TermIndex:
        """Embed a glossary and make it the one that is searched; an earlier one is put aside.

        Args:
            terms: a `Glossary`, a list of terms (or of mappings, see `Glossary`), the path of a glossary file, or the
                folder of an index that this model made. A model with phonemizers of several languages says each term
                in its own; others ignore it. Terms in a writing that the model cannot read are left out, with a
                warning.
            hold: how the vectors are held: by default as suits their number, see `retrieval/index.py`.
            batch_size: spellings embedded at once; None: what suits the text tower.
            show_progress: a progress bar at a terminal, lines in the log where there is none.

        Raises:
            FileNotFoundError, ValueError: naming the file, the entry and the remedy; also where the model has no
                phonemizer for an entry's language, or can say nothing of any entry.
        """
        if isinstance(terms, str | Path) and Path(terms).is_dir():
            return self.load_index(terms)
        indexer = self._indexer(batch_size, show_progress)
        self._index = indexer.make(indexer.read(terms), hold)
        self._warn_of_threshold()
        return self._index

    def _warn_of_threshold(self) -> None:
        config, num_terms = self.model.config, len(self.term_index)
        if self.verifier is None and config.threshold and not fits_glossary(config.threshold_terms, num_terms):
            logger.warning(
                "the threshold %.3f was chosen among %d terms, and this glossary holds %d: among fewer it hides what "
                "was said, among more it lets through what was not. Give one, or choose it with `qtr calibrate`",
                config.threshold,
                config.threshold_terms,
                num_terms,
            )

    def make_index(
        self,
        glossary: Glossary,
        *,
        hold: Hold = "auto",
        batch_size: int | None = None,
        show_progress: bool = True,
    ) -> TermIndex:
        """Embed a glossary, and leave the one that is searched as it is; see `index`."""
        return self._indexer(batch_size, show_progress).make(glossary, hold)

    def index_to(
        self,
        folder: str | Path,
        terms: Terms,
        *,
        hold: Hold = "auto",
        batch_size: int | None = None,
        overwrite: bool = False,
        show_progress: bool = True,
    ) -> TermIndex:
        """Embed a glossary straight into a folder, and search it from there.

        Memory does not grow with the vectors, and a run that was killed goes on where it stopped when it is asked for
        the same again. Arguments and errors as of `index`.

        Raises:
            FileExistsError: the folder exists and `overwrite` is off, or it is something other than an index.
            TermIndexError: another process is writing there.
        """
        self._indexer(batch_size, show_progress).build(Path(folder), terms, hold, overwrite=overwrite)
        return self.load_index(folder)

    def with_glossary(self, terms: Terms, **settings: Any) -> TermRetriever:
        """A retriever of another glossary on the same loaded model; this one keeps its own.

        Arguments and errors as of `index`. For one recording in several glossaries, whose audio is then encoded once,
        see `nearest_in`.
        """
        other = copy.copy(self)
        other._index = None
        other.index(terms, **settings)
        return other

    def add_terms(self, terms: Iterable[str | Term | Mapping[str, Any]], *, batch_size: int | None = None) -> int:
        """Add terms to the indexed glossary, at once searchable; those it has stay. Returns how many were new.

        Any thread may add, remove and search at any time: a search sees one state of the glossary.
        """
        return self.add_to(self.term_index, terms, batch_size=batch_size)

    def add_to(
        self, index: TermIndex, terms: Iterable[str | Term | Mapping[str, Any]], *, batch_size: int | None = None
    ) -> int:
        """`add_terms` for any index of this model."""
        indexer = self._indexer(batch_size)
        return len(indexer.add(index, indexer.read(Glossary(terms, language=index.language))))

    def remove_terms(self, terms: Iterable[str], language: str | None = None) -> int:
        """Remove terms by any of their spellings, in one language or in all; see `TermIndex.remove`.

        Returns how many; raises KeyError where one is not there.
        """
        return self.term_index.remove(terms, language)

    def save_index(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the indexed glossary; see `TermIndex.save`."""
        return self.term_index.save(folder, overwrite=overwrite)

    def load_index(self, folder: str | Path) -> TermIndex:
        """Search an index made by this model and saved; see `TermIndex.load`."""
        self._index = self._indexer().open(folder)
        return self._index

    def _indexer(self, batch_size: int | None = None, show_progress: bool = False) -> GlossaryIndexer:
        return GlossaryIndexer(self.model, self.second_look, batch_size=batch_size, show_progress=show_progress)

    # ---- searching --------------------------------------------------------------------------------------------

    def search(
        self, clip: Any, *, top_k: int = 10, threshold: float | None = None, sampling_rate: int | None = None
    ) -> list[TermMatch]:
        """The terms heard in a clip or recording, best first, each once, where it scored best.

        A threshold is a probability where the model verifies what it finds, else a cosine. Without one, given or
        calibrated, the `top_k` nearest terms come back whether they were said or not; with one, only terms that reach
        it, perhaps none. Silence holds no term.

        Args:
            clip: path, URL, encoded bytes, open file, `Clip`, row, `Recording`, or array of any rate and channels; see
                `clip_blocks`.
            top_k: most matches to return.
            threshold: lowest probability, or cosine; default the calibrated one. 0 and -1 accept everything.
            sampling_rate: of an array, in Hz.

        Raises:
            ValueError: a threshold outside [0, 1], of cosines [-1, 1].
            BadAudioError: no samples, NaN, an unreadable or missing file, an array without its rate.
        """
        return self.search_batch([clip], top_k=top_k, threshold=threshold, sampling_rate=sampling_rate)[0]

    def search_batch(
        self,
        clips: Iterable[Any],
        *,
        top_k: int = 10,
        threshold: float | None = None,
        sampling_rate: int | None = None,
        batch_size: int = 8,
        show_progress: bool = True,
    ) -> list[list[TermMatch]]:
        """`search` for many clips (a list, an iterator, a `Dataset`), `batch_size` chunks of like length at once.

        With `show_progress`, a bar counts chunks where there is a terminal and it takes a while; how many there are is
        an estimate until the last clips are read.
        """
        threshold = self.checked_threshold(threshold)
        likeliest = self.nearest_batch(
            clips, top_k=top_k, sampling_rate=sampling_rate, batch_size=batch_size, show_progress=show_progress
        )
        return [[match for match in matches if match.reaches(threshold)] for matches in likeliest]

    def nearest_batch(
        self,
        clips: Iterable[Any],
        *,
        top_k: int = 10,
        sampling_rate: int | None = None,
        batch_size: int = 8,
        show_progress: bool = True,
    ) -> list[list[TermMatch]]:
        """The `top_k` likeliest terms of each clip, best first, whether they were said or not; see `search_batch`."""
        (answers,) = self.nearest_in(
            [self.term_index],
            clips,
            top_k=top_k,
            sampling_rate=sampling_rate,
            batch_size=batch_size,
            show_progress=show_progress,
        )
        return answers

    def nearest_in(
        self,
        indexes: Sequence[TermIndex],
        clips: Iterable[Any],
        *,
        top_k: int = 10,
        sampling_rate: int | None = None,
        batch_size: int = 8,
        show_progress: bool = True,
    ) -> list[list[list[TermMatch]]]:
        """`nearest_batch` in several indexes of this model, for which the audio is encoded once."""
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        # Terms may come and go meanwhile: one state of each index answers for all clips.
        indexes = [index.snapshot() for index in indexes]
        best: list[list[BestOfEach]] = [[] for _ in indexes]
        with ChunkBar(self.encoder, clips_of(clips), show_progress) as bar:
            chunks = bar.cut(sampling_rate)
            for positions, found in self._hearer.best(chunks, batch_size, indexes, top_k):
                for own, of_index in zip(best, found, strict=True):
                    own += [BestOfEach() for _ in range(bar.num_clips - len(own))]
                    for position, matches in zip(positions, of_index, strict=True):
                        own[position].add(matches)
                bar.update(len(positions))
        return [[each.best(top_k) for each in own] + [[] for _ in range(bar.num_clips - len(own))] for own in best]

    @property
    def _hearer(self) -> Hearer:
        return Hearer(self.encoder, self.second_look, self.verifier, self.spelling_look)

    def stream(
        self,
        chunks: Iterable[np.ndarray],
        *,
        sampling_rate: int = SAMPLING_RATE,
        threshold: float | None = None,
        top_k: int = 10,
        hop_seconds: float | None = None,
        batch_size: int = 1,
    ) -> Iterator[TermMatch]:
        """The terms of audio as they are heard, each time they are said, with times from its start.

        Without `hop_seconds` the answers are those of `search` on the same samples, however they are cut; they come up
        to 8 s after a term. Live audio is answered sooner with `hop_seconds`: about that, and .3 s, after the term
        ended. Every hop encodes the hop and the longest window, so a small one costs more, and it hears less of what
        follows: its scores are a little other ones.

        Args:
            chunks: blocks of samples of any length: int16, or floats in [-1, 1].
            sampling_rate: of the blocks, in Hz.
            threshold: lowest probability, or cosine; default the calibrated one.
            top_k: most terms in a second.
            hop_seconds: between answers; None: as searches hear.
            batch_size: chunks that are encoded at once: more are faster and answer later.

        Raises:
            ValueError: no threshold, given or calibrated: a stream has no best match to answer with.
            BadAudioError: NaN, or an array of another type or shape.
        """
        threshold = self.checked_threshold(threshold)
        if threshold is None:
            raise ValueError("a stream needs a threshold: pass threshold=…, or `calibrate` the model on dev clips")
        blocks = live_pcm(chunks, sampling_rate, SAMPLING_RATE)
        chunker = self.encoder.chunker(hop_seconds)

        def cut() -> Iterator[Chunk]:
            for pcm in blocks:
                yield from chunker.feed(pcm)
            yield from chunker.finish()

        # What is live is told as soon as the next window is no better.
        hold = self.encoder.longest_seconds if hop_seconds is None else min(0.5, 0.4 * hop_seconds)
        told = self._hearer.each_time(
            cut(), self.term_index, threshold=threshold, top_k=top_k, batch_size=batch_size, hold=hold
        )
        return (match for matches in told for match in matches)

    def each_time(
        self,
        clip: Any,
        *,
        threshold: float | None = None,
        top_k: int = 10,
        sampling_rate: int | None = None,
        batch_size: int = 8,
        name: str = "the clip",
    ) -> Iterator[TermMatch]:
        """The terms of a clip or recording each time they are said, in order, while it is read.

        A term's surest match is the one that `search` gives.

        Args:
            clip: see `search`.
            threshold: lowest probability, or cosine; default the calibrated one.
            top_k: most terms in a second.
            sampling_rate: of an array, in Hz.
            batch_size: chunks that are encoded at once: more are faster and answer later.
            name: of the clip, for messages.

        Raises:
            ValueError: no threshold.
            BadAudioError: see `search`; also at its end, where only that shows what is wrong.
        """
        blocks = clip_blocks(clip, sampling_rate, name=name)
        return self.stream(blocks, threshold=threshold, top_k=top_k, batch_size=batch_size)

    def checked_threshold(self, threshold: float | None) -> float | None:
        """The threshold, or the model's own where it is None; raises ValueError where it is none of this kind."""
        lowest = -1 if self.verifier is None else 0
        if threshold is not None and not lowest <= threshold <= 1:
            kind = "scores are cosines, from -1 to 1" if lowest else "it is a probability, from 0 to 1"
            raise ValueError(f"threshold is {threshold}; {kind}")
        return self.threshold if threshold is None else threshold
