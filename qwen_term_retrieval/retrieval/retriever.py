"""Terms of a glossary, found in speech.

`TermRetriever` joins a `TermRetrievalModel` and a `TermIndex`: audio is cut into windows, each window is a vector, and
a term's score is its best window's, whose span says where the term is. It costs the audio tower plus one matrix
product, and a lecture needs no more memory than a sentence.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.errors import VerifierError
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.models.text_towers.tower import speaker_of
from qwen_term_retrieval.models.weights.shipped import model_place
from qwen_term_retrieval.retrieval.calibration import fits_glossary
from qwen_term_retrieval.retrieval.encoding import ClipEncoder, Windows
from qwen_term_retrieval.retrieval.fingerprint import model_fingerprint
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.matches import BestOfEach, TermMatch
from qwen_term_retrieval.retrieval.second_look import (
    FirstStage,
    SecondLook,
    Verify,
    nearest,
    verifier_of,
)
from qwen_term_retrieval.retrieval.spelling_look import NUM_SPELLED, SpellingLook
from qwen_term_retrieval.retrieval.stream import Chunk, RepeatMerger, live_pcm
from qwen_term_retrieval.text.glossary import Glossary, Term
from qwen_term_retrieval.text.pronouncing import check_glossary, speakable
from qwen_term_retrieval.verification.verifier import Verifier

logger = logging.getLogger(__name__)

_CLIPS_AT_ONCE = 256
# Nobody needs a bar for less.
_BAR_AFTER_SECONDS = 2.0


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
    ) -> TermRetriever:
        """Load a model by folder, Hub id or name (or take a loaded one) and put it on `device`; default: a GPU if any.

        Without a model, the default one of those that came along; `qtr models` lists their names.

        LoRA of a model that is loaded here is folded into its weights, see `fold_lora`; a loaded one stays as it is.

        `revision`: a tag, branch or commit on the Hub, such as `best` or `step-600`; `qtr models ID` lists them.

        Raises:
            ValueError: a revision of a folder, or of a loaded model.
            VerifierError: what is asked for, the model cannot do.
        """
        if not isinstance(model, TermRetrievalModel):
            model = model_place(model)
        if revision is not None and (isinstance(model, TermRetrievalModel) or Path(model).is_dir()):
            given = "a loaded model" if isinstance(model, TermRetrievalModel) else f"the folder {model}"
            raise ValueError(
                f"revision={revision!r} is of a model on the Hub, but {given} was given. Each checkpoint of a run is "
                "a folder of its own: `qtr models FOLDER` lists them"
            )
        if isinstance(model, TermRetrievalModel):
            loaded = model
        else:
            loaded = TermRetrievalModel.from_pretrained(model, revision=revision)
            loaded.fold_lora()
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device is not None:
            loaded.to(torch.device(device))  # type: ignore[arg-type]
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
        terms: Glossary | Iterable[str | Term | Mapping[str, Any]] | str | Path,
        *,
        batch_size: int = 1024,
        show_progress: bool = True,
    ) -> TermIndex:
        """Embed a glossary and make it the one that is searched; an earlier one is put aside.

        Args:
            terms: a `Glossary`, a list of terms (or of mappings, see `Glossary`), the path of a glossary file, or the
                folder of an index that this model made. A model with phonemizers of several languages says each term
                in its own; others ignore it. Terms in a writing that the model cannot read are left out, with a
                warning.
            batch_size: spellings embedded at once.
            show_progress: draw a progress bar where there is a terminal.

        Raises:
            FileNotFoundError, ValueError: naming the file, the entry and the remedy; also where the model has no
                phonemizer for an entry's language, or can say nothing of any entry.
        """
        if isinstance(terms, str | Path) and Path(terms).is_dir():
            return self.load_index(terms)
        if isinstance(terms, str | Path):
            glossary = Glossary.from_file(terms)
        else:
            glossary = terms if isinstance(terms, Glossary) else Glossary(terms)
        glossary = self._speakable(glossary)
        self._index = self.make_index(glossary, batch_size=batch_size, show_progress=show_progress)
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

    def _speakable(self, glossary: Glossary) -> Glossary:
        """A glossary without what this model cannot say anything of; see `speakable`."""
        speaker = speaker_of(self.model.text_tower)
        return glossary if speaker is None else speakable(glossary, speaker)

    def make_index(self, glossary: Glossary, *, batch_size: int = 1024, show_progress: bool = True) -> TermIndex:
        """Embed a glossary, and leave the one that is searched as it is; see `index`."""
        logger.info("%s: %s", glossary.source, glossary.summary())
        index = TermIndex(
            self.model.config.embedding_dim, fingerprint=model_fingerprint(self.model), language=glossary.language
        )
        show_progress = show_progress and sys.stderr.isatty()
        self._embed_into(index, glossary, batch_size, show_progress)
        return index.to(self.model.device)

    def add_terms(self, terms: Iterable[str | Term | Mapping[str, Any]], *, batch_size: int = 1024) -> int:
        """Add terms to the indexed glossary, at once searchable; those it has stay. Returns how many were new."""
        glossary = self._speakable(Glossary(terms, language=self.term_index.language))
        return len(self._embed_into(self.term_index, glossary, batch_size))

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
        self._index = TermIndex.load(folder, fingerprint=model_fingerprint(self.model)).to(self.model.device)
        if self.second_look is not None:
            self.second_look.pronounce(self._index)
        return self._index

    def _embed_into(
        self, index: TermIndex, glossary: Glossary, batch_size: int, show_progress: bool = False
    ) -> list[Term]:
        """Add a glossary to an index, and say what was new."""
        speaker = speaker_of(self.model.text_tower)
        if speaker is not None:
            check_glossary(glossary, speaker)

        def embed(terms: list[Term]) -> torch.Tensor:
            sayings = [way for term in terms for way in term.sayings]
            languages = [term.language for term in terms for _ in term.sayings]
            return self.model.encode_terms(
                sayings, batch_size=batch_size, show_progress=show_progress, languages=languages
            )

        new = index.add(glossary, embed)
        if self.second_look is not None:
            self.second_look.pronounce(index)
        return new

    # ---- searching --------------------------------------------------------------------------------------------

    def search(
        self, clip: Any, *, top_k: int = 10, threshold: float | None = None, sampling_rate: int | None = None
    ) -> list[TermMatch]:
        """The terms heard in a clip or recording, best first, each once, where it scored best.

        A threshold is a probability where the model verifies what it finds, else a cosine. Without one, given or
        calibrated, the `top_k` nearest terms come back whether they were said or not; with one, only terms that reach
        it, perhaps none. Silence holds no term.

        Args:
            clip: path, encoded bytes, `Clip`, row, or array of any rate and channels; see `clip_pcm`.
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
        clips: Sequence[Any],
        *,
        top_k: int = 10,
        threshold: float | None = None,
        sampling_rate: int | None = None,
        batch_size: int = 8,
        show_progress: bool = True,
    ) -> list[list[TermMatch]]:
        """`search` for many clips, `batch_size` chunks of like length at once.

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
        clips: Sequence[Any],
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
        clips: Sequence[Any],
        *,
        top_k: int = 10,
        sampling_rate: int | None = None,
        batch_size: int = 8,
        show_progress: bool = True,
    ) -> list[list[list[TermMatch]]]:
        """`nearest_batch` in several indexes of this model, for which the audio is encoded once."""
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        answers: list[list[list[TermMatch]]] = [[] for _ in indexes]
        hidden = None if show_progress else True
        with tqdm(desc="searching", unit="chunk", disable=hidden, delay=_BAR_AFTER_SECONDS) as bar:
            for group in _batches(clips, _CLIPS_AT_ONCE):
                best = [[BestOfEach() for _ in group] for _ in indexes]
                chunks = self.encoder.cut(group, sampling_rate, first=len(answers[0]))
                bar.total = bar.n + math.ceil(len(chunks) * (len(clips) - len(answers[0])) / len(group))
                for positions, found in self._hear_chunks(chunks, batch_size, indexes, top_k):
                    for own, of_index in zip(best, found, strict=True):
                        for position, matches in zip(positions, of_index, strict=True):
                            own[position].add(matches)
                    bar.update(len(positions))
                for answer, own in zip(answers, best, strict=True):
                    answer += [each.best(top_k) for each in own]
        return answers

    def stream(
        self,
        chunks: Iterable[np.ndarray],
        *,
        sampling_rate: int = SAMPLING_RATE,
        threshold: float | None = None,
        top_k: int = 10,
        hop_seconds: float = 1.0,
    ) -> Iterator[TermMatch]:
        """The terms of live audio as they are heard, each time they are said, with times from the start of the stream.

        A match comes at most about `hop_seconds` + 0.7 s after the term ended. Smaller hops answer sooner and cost
        more: every hop encodes the hop and the longest window.

        Args:
            chunks: blocks of samples of any length: int16, or floats in [-1, 1].
            sampling_rate: of the blocks, in Hz.
            threshold: lowest probability, or cosine; default the calibrated one.
            top_k: most terms in one hop.

        Raises:
            ValueError: no threshold, given or calibrated: a stream has no best match to answer with.
            BadAudioError: NaN, or an array of another type or shape.
        """
        threshold = self.checked_threshold(threshold)
        if threshold is None:
            raise ValueError("a stream needs a threshold: pass threshold=…, or `calibrate` the model on dev clips")
        return self._stream(live_pcm(chunks, sampling_rate, SAMPLING_RATE), threshold, top_k, hop_seconds)

    def _stream(
        self, blocks: Iterable[np.ndarray], threshold: float, top_k: int, hop_seconds: float
    ) -> Iterator[TermMatch]:
        chunker, merger = self.encoder.chunker(hop_seconds), RepeatMerger()
        for pcm in blocks:
            for chunk in chunker.feed(pcm):
                yield from self._hear(chunk, threshold, top_k, merger)
        for chunk in chunker.finish():
            yield from self._hear(chunk, threshold, top_k, merger)
        yield from merger.finish()

    def _hear(self, chunk: Chunk, threshold: float, top_k: int, merger: RepeatMerger) -> list[TermMatch]:
        frames = len(chunk.pcm) / self.encoder.samples_per_frame
        heard_to = min(chunk.owned_to, chunk.first_frame + frames) / self.model.frame_rate
        # Chunks at a stream's end may be too short for the tower, and nothing is heard in silence.
        if frames < 2 or not chunk.pcm.any():
            return merger.add([], heard_to)
        ((_, ((found,),)),) = self._hear_chunks([(0, chunk)], 1, [self.term_index], top_k)
        return merger.add((match for match in found if match.reaches(threshold)), heard_to)

    def _hear_chunks(
        self, chunks: Sequence[tuple[int, Chunk]], batch_size: int, indexes: Sequence[TermIndex], top_k: int
    ) -> Iterator[tuple[list[int], list[list[list[TermMatch]]]]]:
        """Batches of chunks: the clips they are of, and by index the best terms of each."""
        look, verifier = self.second_look, self.verifier
        scale = self.model.logit_scale.exp().item()
        encoded = self.encoder.encode_chunks(chunks, batch_size, with_phonemes=look is not None)
        for positions, batch, windows in encoded:
            if look is None or verifier is None:
                yield positions, [nearest(windows, index, top_k, scale) for index in indexes]
                continue
            answers = []
            for index in indexes:
                matches = look.matches(look.look(windows, index, batch), verifier, index, max(top_k, NUM_SPELLED))
                if self.spelling_look is not None:
                    matches = [
                        self.spelling_look.reorder(chunk, own) for chunk, own in zip(batch, matches, strict=True)
                    ]
                answers.append([own[:top_k] for own in matches])
            yield positions, answers

    def checked_threshold(self, threshold: float | None) -> float | None:
        """The threshold, or the model's own where it is None; raises ValueError where it is none of this kind."""
        lowest = -1 if self.verifier is None else 0
        if threshold is not None and not lowest <= threshold <= 1:
            kind = "scores are cosines, from -1 to 1" if lowest else "it is a probability, from 0 to 1"
            raise ValueError(f"threshold is {threshold}; {kind}")
        return self.threshold if threshold is None else threshold


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))
