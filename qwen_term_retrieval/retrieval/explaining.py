"""Why a term was found in a clip, or was not: its sounds beside those that were heard.

`align_term` lays a term's likeliest pronunciation over the whole clip, wherever it fits best, and says of each sound
when it is said, how well, and what the phoneme head heard there. `explain` adds what a search answers: the cosine, the
probability, and which other terms of the glossary claim the same place. Each costs a pass of the audio tower.

Shapes: U sub-frames of the whole clip, C classes of the head, W ways to say the term.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen_term_retrieval.errors import BadAudioError, VerifierError
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.retrieval.encoding import ClipEncoder
from qwen_term_retrieval.retrieval.index import TermIndex
from qwen_term_retrieval.retrieval.looks.first_look import NUM_CANDIDATES
from qwen_term_retrieval.retrieval.looks.second_look import phoneme_head_of
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from qwen_term_retrieval.retrieval.stream import Chunk
from qwen_term_retrieval.text.alphabet import BLANK
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.verification.alignment import BestPaths, Pairs, best_paths
from qwen_term_retrieval.verification.pronunciations import PronunciationBank

_MOST_RIVALS = 5
_BATCH_SIZE = 8


@dataclass(frozen=True)
class HeardSound:
    """A symbol that the head hears when each frame decides by itself; start and end in seconds."""

    symbol: str
    start: float
    end: float


@dataclass(frozen=True)
class AlignedSound:
    """A sound of a term and its frames, in seconds.

    `symbol` is "" for what was heard between two sounds of the term and is not in it. `score` is the log-probability
    of the sound over its frames against each frame's likeliest class: 0 at best. `heard` are the symbols heard in them.
    """

    symbol: str
    start: float
    end: float
    score: float
    heard: tuple[str, ...]

    def __str__(self) -> str:
        """What it is and its score: "n -7.1", or "+ ɪ n s -18.6" for what the term does not have."""
        return f"{self.symbol or ' '.join(('+', *self.heard))} {self.score:.1f}"


@dataclass(frozen=True)
class Alignment:
    """A term where it fits a clip best.

    sounds: of the pronunciation that fits best, in order. between: what was heard between them besides. fit: the
    log-likelihood of term and place against the best that the frames could say, 0 at best. heard: in the chunk of the
    recording that it was found in.
    """

    term: str
    sounds: tuple[AlignedSound, ...]
    between: tuple[AlignedSound, ...]
    fit: float
    heard: tuple[HeardSound, ...]

    @property
    def start(self) -> float:
        return self.sounds[0].start

    @property
    def end(self) -> float:
        return self.sounds[-1].end

    @property
    def fit_per_sound(self) -> float:
        return self.fit / len(self.sounds)

    @property
    def in_order(self) -> list[AlignedSound]:
        """The sounds, and what was heard between them."""
        return sorted((*self.sounds, *self.between), key=lambda sound: (sound.start, sound.end))

    @property
    def worst(self) -> AlignedSound:
        """What speaks most against the term: a sound of it, or what was heard besides."""
        return min(self.in_order, key=lambda sound: sound.score)


@dataclass(frozen=True)
class Explanation:
    """An alignment and what a search makes of it.

    alone: the match of the term in a glossary of nothing else; None where the clip has no window. among: its match in
    the glossary; None where the first stage does not propose it. rivals: other terms that claim more than half of its
    place, surest first.
    """

    alignment: Alignment
    alone: TermMatch | None
    among: TermMatch | None
    rivals: tuple[TermMatch, ...]


def align_term(
    model: TermRetrievalModel, clip: Any, term: str, language: str | None = None, *, sampling_rate: int | None = None
) -> Alignment:
    """Lay a term over a clip or recording, where it fits best; a long one is heard chunk by chunk.

    Args:
        model: with a phoneme head.
        clip: path, `Clip`, row or array of any length, see `clip_blocks`.
        term: need not be in any glossary.
        language: of the term, see `Pronouncer`.
        sampling_rate: of an array, in Hz.

    Raises:
        VerifierError: the model has no phoneme head, or the term no sound that it knows.
        BadAudioError: the clip is silent, or too short to say the term in; or see `clip_blocks`.

    Example:
        >>> alignment = align_term(model, "clip.wav", "sixteen")                      # doctest: +SKIP
        >>> alignment.worst                                                           # doctest: +SKIP
        AlignedSound(symbol='n', start=0.94, end=0.96, score=-9.1, heard=())
    """
    head = phoneme_head_of(model)
    (ways,) = head.alphabet.pronunciations([term], [language])
    if not ways:
        raise VerifierError(f"{term!r} has no sound that the phoneme head knows: give a spelling that can be said")
    best: Alignment | None = None
    too_short: BadAudioError | None = None
    frames_a_second = head.frame_rate / head.config.sub_frames
    for chunk, log_probs_UC in _heard_chunks(ClipEncoder(model), clip, sampling_rate):
        try:
            found = align_pronunciations(
                log_probs_UC,
                ways,
                head.alphabet.symbols,
                term=term,
                frame_rate=head.frame_rate,
                begins=chunk.first_frame / frames_a_second,
            )
        except BadAudioError as error:
            too_short = error
            continue
        if best is None or found.fit > best.fit:
            best = found
    if best is None:
        raise BadAudioError(f"{_name_of(clip)}: {too_short}") from too_short
    return best


def hear_sounds(encoder: ClipEncoder, clip: Any, *, sampling_rate: int | None = None) -> torch.Tensor:
    """What the phoneme head hears in a whole clip: log-probabilities (U, C), float32 on the CPU.

    A long clip is heard in chunks, and of each is taken what the chunk owns; in silence, the blank is certain.

    Raises:
        VerifierError: the model has no phoneme head.
        BadAudioError: the clip is silent or too short, or see `clip_blocks`.
    """
    head = phoneme_head_of(encoder.model)
    per_frame = head.config.sub_frames
    pieces: list[tuple[int, torch.Tensor]] = []
    for chunk, heard_UC in _heard_chunks(encoder, clip, sampling_rate):
        last = chunk.first_frame + len(heard_UC) // per_frame
        first, after = max(0, int(chunk.owned_from)), int(min(chunk.owned_to, last))
        own = slice((first - chunk.first_frame) * per_frame, (after - chunk.first_frame) * per_frame)
        pieces.append((first * per_frame, heard_UC[own]))
    num_sub_frames = max(first + len(piece) for first, piece in pieces)
    log_probs_UC = torch.full((num_sub_frames, head.alphabet.num_classes), -torch.inf)
    log_probs_UC[:, BLANK] = 0.0
    for first, piece in pieces:
        log_probs_UC[first : first + len(piece)] = piece
    return log_probs_UC


def _heard_chunks(encoder: ClipEncoder, clip: Any, sampling_rate: int | None) -> Iterator[tuple[Chunk, torch.Tensor]]:
    """Chunks of a clip, while it is read, and what is heard in each, (U, C)."""
    chunks = encoder.cut([clip], sampling_rate)
    is_silent = True
    for _, batch, windows in encoder.encode_chunks(chunks, _BATCH_SIZE, with_phonemes=True):
        if windows.log_probs is None or windows.num_sub_frames is None:
            raise VerifierError("the chunks were encoded without their sounds")
        log_probs_BUC, num_B = windows.log_probs.float().cpu(), windows.num_sub_frames.tolist()
        for row, chunk in enumerate(batch):
            is_silent = False
            yield chunk, log_probs_BUC[row, : num_B[row]]
    if is_silent:
        raise BadAudioError(f"{_name_of(clip)} is silent: nothing is heard in it")


def align_pronunciations(
    log_probs_UC: torch.Tensor,
    ways: Sequence[NDArray[np.int16]],
    symbols: Sequence[str],
    *,
    term: str,
    frame_rate: float,
    begins: float = 0.0,
) -> Alignment:
    """`align_term` for what was heard already.

    Args:
        log_probs_UC: see `hear_sounds`.
        ways: to say the term, at least one, as classes of the head.
        symbols: of the head; class i + 1 is symbol i.
        term: as it is to be called.
        frame_rate: sub-frames a second.
        begins: the second of the recording that the first of them begins at.

    Raises:
        BadAudioError: there are too few frames for any of them.
    """
    bank = PronunciationBank.of_owned([ways], log_probs_UC.shape[1])
    rows_W = np.arange(len(bank))
    num_frames = len(log_probs_UC)
    pairs = Pairs.of_whole_clips(rows_W, np.zeros_like(rows_W), np.array([num_frames]))
    paths = best_paths(log_probs_UC[None], bank, pairs, free=True)
    best = int(paths.scores_P.argmax())
    if paths.scores_P[best] == -np.inf:
        raise BadAudioError(f"{num_frames / frame_rate:.2f} s are too short to say {term!r} in")
    heard = _heard(log_probs_UC, symbols, frame_rate, begins)
    own = slice(paths.offsets_P1[best], paths.offsets_P1[best + 1])
    seconds_S2 = np.stack([paths.sound_starts_S[own], paths.sound_ends_S[own]], axis=1) / frame_rate + begins
    said = zip(bank[best].tolist(), seconds_S2.tolist(), paths.sound_scores_S[own].tolist(), strict=True)
    sounds = tuple(
        AlignedSound(symbols[each - 1], start, end, score, _within(heard, start, end))
        for each, (start, end), score in said
    )
    return Alignment(
        term, sounds, _between(sounds, heard, _inner_gaps(paths, best)), float(paths.scores_P[best]), heard
    )


def explain(
    retriever: TermRetriever,
    clip: Any,
    term: str,
    language: str | None = None,
    *,
    index: TermIndex | None = None,
    sampling_rate: int | None = None,
) -> Explanation:
    """Why a search finds a term in a clip, or does not.

    Args:
        retriever: of a model with a phoneme head; probabilities take a verifier.
        clip, term, language, sampling_rate: see `align_term`.
        index: the glossary of the search, which has the term.

    Raises:
        VerifierError, BadAudioError: see `align_term`.
        ValueError: the index does not have the term.
    """
    if index is not None and index.id_of(term, language) is None:
        raise ValueError(f"{term!r} is not among the {len(index)} terms of the glossary: add it first")
    alignment = align_term(retriever.model, clip, term, language, sampling_rate=sampling_rate)
    only = retriever.make_index(Glossary([{"term": term, "language": language}]), show_progress=False)
    indexes = [only] if index is None else [only, index]
    answers = retriever.nearest_in(
        indexes, [clip], top_k=NUM_CANDIDATES, sampling_rate=sampling_rate, show_progress=False
    )
    alone = next(iter(answers[0][0]), None)
    if index is None:
        return Explanation(alignment, alone, None, ())
    own, (found,) = index.id_of(term, language), answers[1]
    among = next((match for match in found if match.term_id == own), None)
    rivals = [match for match in found if match.term_id != own and _claims(match, alignment)]
    return Explanation(alignment, alone, among, tuple(rivals[:_MOST_RIVALS]))


def _claims(match: TermMatch, alignment: Alignment) -> bool:
    """Whether they share more than half of the shorter one, as the verifier's margins have it."""
    shared = min(match.end, alignment.end) - max(match.start, alignment.start)
    return 2 * shared > min(match.end - match.start, alignment.end - alignment.start)


def _heard(
    log_probs_UC: torch.Tensor, symbols: Sequence[str], frame_rate: float, begins: float
) -> tuple[HeardSound, ...]:
    """The likeliest class of each frame, equal ones in a row joined, without blanks."""
    classes, counts = torch.unique_consecutive(log_probs_UC.argmax(dim=1), return_counts=True)
    ends = counts.cumsum(0)
    runs = zip(classes.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True)
    return tuple(
        HeardSound(symbols[each - 1], begins + start / frame_rate, begins + end / frame_rate)
        for each, start, end in runs
        if each != BLANK
    )


def _within(heard: Sequence[HeardSound], start: float, end: float) -> tuple[str, ...]:
    return tuple(each.symbol for each in heard if each.start < end and start < each.end)


def _inner_gaps(paths: BestPaths, pair: int) -> list[float]:
    """The score of the gap before each sound but the first."""
    first, after = paths.offsets_P1[pair] + pair, paths.offsets_P1[pair + 1] + pair
    return paths.gap_scores_N[first + 1 : after].tolist()


def _between(
    sounds: Sequence[AlignedSound], heard: Sequence[HeardSound], gap_scores: Sequence[float]
) -> tuple[AlignedSound, ...]:
    """What was heard between two sounds, and in the frames of neither."""
    found = []
    for before, after, score in zip(sounds, sounds[1:], gap_scores, strict=False):
        inside = [each for each in heard if before.end <= each.start and each.end <= after.start]
        if inside:
            symbols = tuple(each.symbol for each in inside)
            found.append(AlignedSound("", before.end, after.start, score, symbols))
    return tuple(found)


def _name_of(clip: Any) -> str:
    return str(clip) if isinstance(clip, str | Path) else "the clip"
