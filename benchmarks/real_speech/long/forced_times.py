"""Where in a clip a term is said, by forced alignment: the sounds of the whole text are laid over the whole clip.

The text is known, so a head that mishears a sound still finds its place. On the 60 sentences of the demo corpus' test
split, whose times its speech engines gave, a small head (whisper-tiny, 260 steps) is off by 0.044 s on average.
The head is the judged model's own, and a bias that it shares with the search does not show. Models without a head have
no span error.

Shapes: U sub-frames, C classes of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.real_speech.long.recordings import Place, SearchedSet, Span, TermTimes
from benchmarks.real_speech.spelling import spell_out
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.retrieval.encoding import ClipEncoder
from qwen_term_retrieval.retrieval.explaining import hear_sounds
from qwen_term_retrieval.retrieval.looks.second_look import phoneme_head_of
from qwen_term_retrieval.verification.alignment import Pairs, best_paths
from qwen_term_retrieval.verification.pronunciations import PronunciationBank


class ForcedTimes:
    """(pcm of a clip, its text, a term said in it) to the term's start and end in the clip, in seconds.

    None where the term's words do not stand in the text, or stand there twice, and where the text cannot be said in the
    clip. Each word has its first pronunciation.

    Raises:
        VerifierError: the model has no phoneme head.
    """

    def __init__(self, model: TermRetrievalModel):
        self.head = phoneme_head_of(model)
        self.encoder = ClipEncoder(model)
        # A clip is asked for term by term.
        self._asked: tuple[bytes, str] | None = None
        self._words: list[Span | None] = []

    def __call__(self, pcm: NDArray[np.int16], text: str, term: str) -> Span | None:
        words, wanted = spell_out(text).split(), spell_out(term).split()
        places = [first for first in range(len(words)) if words[first : first + len(wanted)] == wanted]
        if len(places) != 1 or not pcm.any():
            return None
        if self._asked != (pcm.tobytes(), text):
            log_probs_UC = hear_sounds(self.encoder, pcm, sampling_rate=SAMPLING_RATE)
            self._words = self.times_of_words(log_probs_UC, words)
            self._asked = pcm.tobytes(), text
        said = self._words[places[0] : places[0] + len(wanted)]
        known = [span for span in said if span is not None]
        return (known[0][0], known[-1][1]) if len(known) == len(said) else None

    def times_of_words(self, log_probs_UC: torch.Tensor, words: Sequence[str]) -> list[Span | None]:
        """Start and end of each word, in seconds; None for one without a sound, or of a text that cannot be said."""
        alphabet = self.head.alphabet
        sounds = [ways[0] if ways else np.zeros(0, np.int16) for ways in alphabet.pronunciations(list(words))]
        if not sum(map(len, sounds)):
            return [None] * len(words)
        bank = PronunciationBank.of_owned([[np.concatenate(sounds)]], alphabet.num_classes)
        pairs = Pairs.of_whole_clips(np.array([0]), np.array([0]), np.array([len(log_probs_UC)]))
        paths = best_paths(log_probs_UC[None], bank, pairs)
        if paths.scores_P[0] == -np.inf:
            return [None] * len(words)
        starts, ends = paths.sound_starts_S / self.head.frame_rate, paths.sound_ends_S / self.head.frame_rate
        after = list(accumulate(map(len, sounds)))
        return [
            (float(starts[last - len(own)]), float(ends[last - 1])) if len(own) else None
            for own, last in zip(sounds, after, strict=True)
        ]


def with_times(searched: SearchedSet, times: TermTimes) -> SearchedSet:
    """The set, knowing where in their places its terms are said."""
    recordings = [
        replace(each, places=tuple(_timed(place, each.pcm_of(place), times) for place in each.places))
        for each in searched.recordings
    ]
    return replace(searched, recordings=recordings)


def _timed(place: Place, pcm: NDArray[np.int16], times: TermTimes) -> Place:
    found = {term: times(pcm, place.text, term) for term in place.terms}
    spans = {term: (span[0] + place.start, span[1] + place.start) for term, span in found.items() if span is not None}
    return replace(place, spans=spans)
