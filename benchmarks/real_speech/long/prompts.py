"""The long set of the studio: prompts of more than four words, alone and joined to recordings of ten minutes.

The glossary are the content terms of those prompts. In the joined recordings they stand in random order among other
speech, with pauses of half a second to two seconds, in which there is faint noise. The other speech are the shorter
prompts in which no term of the glossary is said, 214 words and phrases by the same speaker. One seed makes it all.

Distractors are WordNet lemmas and medical words, drawn as in `term_banks.py`. None is, by its letters, a run of words
of any prompt, so that none is said: what counts as wrong is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from benchmarks.real_speech.asterisk import SAMPLING_RATE, Prompt, read_prompts
from benchmarks.real_speech.judged_sets import SHORT_WORDS
from benchmarks.real_speech.long.content_terms import content_terms, terms_in
from benchmarks.real_speech.long.recordings import Place, Recording, SearchedSet
from benchmarks.real_speech.spelling import letters_of
from benchmarks.real_speech.term_banks import NUM_DISTRACTORS, TermBanks, make_banks
from qwen_term_retrieval.text.spellings import spoken_spellings
from qwen_term_retrieval.text.wordlists import medical_terms, wordnet_terms

SEED = 20261130
JOINED_SECONDS = 600.0
PAUSE_SECONDS = (0.5, 2.0)
NOISE_LEVEL = 8.0  # of 32768, root mean square: -72 dB
LONGEST_SAID = 8  # words of the runs that no distractor may be
SPEAKER = "allison-smith"


def long_sets() -> tuple[list[SearchedSet], list[str]]:
    """The clips alone, the joined recordings, and their glossary.

    Raises:
        PackageError: the packages of the prompts cannot be fetched.
    """
    prompts = read_prompts().prompts
    long = [prompt for prompt in prompts if prompt.num_words > SHORT_WORDS]
    glossary = content_terms(prompt.text for prompt in long)
    known = frozenset(glossary)
    clips = [as_recording(prompt, known) for prompt in long]
    short = [prompt for prompt in prompts if prompt.num_words <= SHORT_WORDS]
    others = [as_recording(prompt, known) for prompt in short if not terms_in(prompt.text, known)]
    return [
        SearchedSet("alone", f"prompts of more than {SHORT_WORDS} words, one studio speaker", clips),
        SearchedSet(
            "joined",
            f"the same joined to recordings of ten minutes, with pauses and {len(others)} short prompts of the same "
            "speaker that say no term",
            join([*clips, *others]),
            joined=True,
        ),
    ], glossary


def as_recording(prompt: Prompt, glossary: frozenset[str]) -> Recording:
    pcm = prompt.pcm()
    place = Place(0.0, len(pcm) / SAMPLING_RATE, prompt.text, terms_in(prompt.text, glossary))
    return Recording(prompt.key, pcm, (place,), SPEAKER)


def join(clips: Sequence[Recording], *, seconds: float = JOINED_SECONDS, seed: int = SEED) -> list[Recording]:
    """Join clips of one place each, in random order; a recording ends with the clip that makes it `seconds` long."""
    generator = np.random.default_rng(seed)
    joined: list[Recording] = []
    pieces, places, now = [], [], 0
    for position, row in enumerate(generator.permutation(len(clips))):
        pause = _pause(generator)
        pieces += [pause, clips[row].pcm]
        (place,) = clips[row].places
        start = (now + len(pause)) / SAMPLING_RATE
        places.append(replace(place, start=place.start + start, end=place.end + start))
        now += len(pause) + len(clips[row].pcm)
        if now >= seconds * SAMPLING_RATE or position == len(clips) - 1:
            pieces.append(_pause(generator))
            key = f"joined-{len(joined)}"
            joined.append(Recording(key, np.concatenate(pieces), tuple(places), clips[row].speaker))
            pieces, places, now = [], [], 0
    return joined


def _pause(generator: np.random.Generator) -> np.ndarray:
    length = int(generator.uniform(*PAUSE_SECONDS) * SAMPLING_RATE)
    return np.round(generator.normal(0, NOISE_LEVEL, length)).astype(np.int16)


def long_banks(glossary: Sequence[str], texts: Iterable[str]) -> TermBanks:
    """The glossary alone, and among distractors that are no run of words of any of the texts."""
    said = {letters_of(run) for text in texts for run in spoken_spellings(text, max_words=LONGEST_SAID)}
    others = [term for term in (*wordnet_terms(), *medical_terms()) if letters_of(term) not in said]
    return make_banks(glossary, others, NUM_DISTRACTORS, hard=False)
