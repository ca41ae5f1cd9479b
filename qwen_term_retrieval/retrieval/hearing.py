"""What is heard in chunks of audio: the terms of each where they are surest, and again wherever else they are said.

A search wants each term once, a transcript of terms wants each time. Both come from here, from the same chunks with the
same numbers: a term that reaches the threshold is looked for again in the rest of its chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from qwen_term_retrieval.models.embeddings import AudioEmbeddings
from qwen_term_retrieval.retrieval.encoding import ClipEncoder
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.looks.first_look import nearest, nearest_each_time
from qwen_term_retrieval.retrieval.looks.second_look import SecondLook
from qwen_term_retrieval.retrieval.looks.spelling_look import NUM_SPELLED, SpellingLook
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.stream import Chunk, RepeatMerger
from qwen_term_retrieval.verification.verifier import Verifier


@dataclass(frozen=True, eq=False)
class Hearer:
    """Hears terms in chunks, with the first look and, where there is a verifier, the others."""

    encoder: ClipEncoder
    second_look: SecondLook | None
    verifier: Verifier | None
    spelling_look: SpellingLook | None

    def best(
        self, chunks: Iterable[tuple[int, Chunk]], batch_size: int, indexes: Sequence[TermIndex], top_k: int
    ) -> Iterator[tuple[list[int], list[list[list[TermMatch]]]]]:
        """Batches of chunks: the clips they are of, and by index the best `top_k` terms of each."""
        for positions, batch, windows in self._encoded(chunks, batch_size):
            yield positions, [self._matches(windows, index, batch, top_k) for index in indexes]

    def each_time(
        self, chunks: Iterable[Chunk], index: TermIndex, *, threshold: float, top_k: int, batch_size: int, hold: float
    ) -> Iterator[list[TermMatch]]:
        """The terms of one recording each time that they are said, in order; one list for each batch of chunks.

        Args:
            chunks: of one recording, in order.
            threshold: lowest confidence.
            top_k: most terms in a second.
            batch_size: chunks that are encoded at once.
            hold: seconds; see `RepeatMerger`.
        """
        merger, most = RepeatMerger(hold), _SurestOfEachSecond(top_k)
        for batch in _batches(chunks, batch_size):
            told: list[TermMatch] = []
            # Terms may come and go meanwhile: one state of the index answers for a batch.
            state = index.snapshot()
            by_place: dict[int, list[TermMatch]] = {}
            heard = [(place, chunk) for place, chunk in enumerate(batch) if self._can_hear(chunk)]
            for places, own, windows in self._encoded(heard, batch_size):
                # Before they are cut to the best of a second, all that a chunk of several may hold.
                seconds = max(math.ceil(self._owned_seconds(chunk)) for chunk in own)
                found = self._reaching(windows, state, own, threshold, top_k * seconds)
                by_place |= dict(zip(places, found, strict=True))
            for place, chunk in enumerate(batch):
                told += merger.add(most.of(by_place.get(place, ())), self._heard_to(chunk))
            yield told
        yield merger.finish()

    def _encoded(
        self, chunks: Iterable[tuple[int, Chunk]], batch_size: int
    ) -> Iterator[tuple[list[int], list[Chunk], AudioEmbeddings]]:
        return self.encoder.encode_chunks(chunks, batch_size, with_phonemes=self.second_look is not None)

    def _matches(
        self, windows: AudioEmbeddings, index: TermIndex, batch: Sequence[Chunk], top_k: int
    ) -> list[list[TermMatch]]:
        look, verifier = self.second_look, self.verifier
        if look is None or verifier is None:
            return nearest(windows, index, top_k, self.encoder.logit_scale)
        found = look.matches(look.look(windows, index, batch), verifier, index, max(top_k, NUM_SPELLED))
        if self.spelling_look is not None:
            found = [self.spelling_look.reorder(chunk, own) for chunk, own in zip(batch, found, strict=True)]
        return [_of_first_terms(own, top_k) for own in found]

    def _reaching(
        self, windows: AudioEmbeddings, index: TermIndex, batch: Sequence[Chunk], threshold: float, top_k: int
    ) -> list[list[TermMatch]]:
        """What reaches the threshold in each chunk, each time that it is said."""
        if self.verifier is not None:
            found = self._matches(windows, index, batch, top_k)
            return [[match for match in own if match.reaches(threshold)] for own in found]
        return nearest_each_time(windows, index, top_k, self.encoder.logit_scale, threshold)

    def _can_hear(self, chunk: Chunk) -> bool:
        """Chunks at a stream's end may be too short for the tower, and nothing is heard in silence."""
        return len(chunk.pcm) >= self.encoder.least_samples and bool(chunk.pcm.any())

    def _heard_to(self, chunk: Chunk) -> float:
        last = chunk.first_frame + len(chunk.pcm) / self.encoder.samples_per_frame
        return min(chunk.owned_to, last) / self.encoder.model.frame_rate

    def _owned_seconds(self, chunk: Chunk) -> float:
        return self._heard_to(chunk) - chunk.owned_from / self.encoder.model.frame_rate


class _SurestOfEachSecond:
    """Lets the `top_k` surest matches of each second through, by where they end."""

    def __init__(self, top_k: int) -> None:
        self.top_k = top_k

    def of(self, matches: Iterable[TermMatch]) -> list[TermMatch]:
        seconds: dict[int, list[TermMatch]] = {}
        for match in sorted(matches, key=lambda match: -match.confidence):
            seconds.setdefault(int(match.end), []).append(match)
        return [match for own in seconds.values() for match in own[: self.top_k]]


def _of_first_terms(matches: Sequence[TermMatch], top_k: int) -> list[TermMatch]:
    terms = [*dict.fromkeys(match.term_id for match in matches)][:top_k]
    return [match for match in matches if match.term_id in terms]


def _batches(chunks: Iterable[Chunk], size: int) -> Iterator[list[Chunk]]:
    batch: list[Chunk] = []
    for chunk in chunks:
        batch.append(chunk)
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch
