"""The corpus of the `laptop` recipe: some 16,000 short synthetic clips, made on the spot and cached by content.

What is said: terms of WordNet, medicine, computing and geography, everyday phrases, numbers and letters; one clip in
ten says its term inside a sentence, with known start and end. Who says it: flite's four voices, espeak-ng in many
accents, variants and pitches, and 300 voices of Kokoro, 26 of its English ones and mixtures of two of them, for as many
clips as `num_kokoro` asks (about 1.1 s of one core each).
Texts follow from `seed`, and a text's voice, speed and sentence from the text, so the speech cache serves a second run,
and most of it a run with other sizes or other excluded texts.
"""

from __future__ import annotations

import functools
import itertools
import logging
import random
from collections.abc import Callable, Iterator, Set
from pathlib import Path

from qwen_term_retrieval.synthesis.corpus_folder import CorpusRow, write_corpus
from qwen_term_retrieval.synthesis.engines import get_engine
from qwen_term_retrieval.synthesis.everyday import everyday_phrase, fragment, letter_phrase, number_phrase
from qwen_term_retrieval.synthesis.rendering import RenderReport, SpeechRequest
from qwen_term_retrieval.text import wordlists
from qwen_term_retrieval.text.spellings import normalize_term

logger = logging.getLogger(__name__)

NUM_CLIPS = 16_000
NUM_KOKORO = 1_800
_KOKORO_VOICES = 300
SPEEDS = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)
_PITCHES = ("", "@35", "@42", "@58", "@66")
_FLITE_SHARE = 0.3
_SENTENCE_SHARE = 0.1
_VALIDATION_SHARE = 0.025
_MAX_KOKORO_WORDS = 5
_MOST_DRAWS = 200_000
# Heard only in the validation split.
HELD_OUT_VOICES = ("am_michael", "bf_emma")
_HELD_OUT_VARIANTS = ("+Andy", "+steph")
KIND_SHARES = {
    "everyday": 0.22,
    "fragment": 0.27,
    "number": 0.10,
    "letter": 0.04,
    "wordnet": 0.10,
    "wordnet_phrase": 0.12,
    "medicine": 0.06,
    "computing": 0.05,
    "places": 0.04,
}


def make_laptop_corpus(
    out: str | Path,
    *,
    num_clips: int = NUM_CLIPS,
    num_kokoro: int = NUM_KOKORO,
    seed: int = 0,
    exclude: Set[str] = frozenset(),
    num_workers: int = 2,
    overwrite: bool = False,
    show_progress: bool = True,
) -> RenderReport:
    """Make the corpus in the folder `out` (`train.termaudio`, `validation.termaudio`, FLAC); see the module's head.

    `exclude` holds texts as `normalize_term` writes them; none of them is said, alone or as a term in a sentence.

    Raises:
        FileExistsError: if `out` exists and `overwrite` is not set.
        PackageError: if a word list or voice cannot be had.
    """
    rows = laptop_rows(num_clips=num_clips, num_kokoro=num_kokoro, seed=seed, exclude=exclude)
    made_from = {"num_clips": num_clips, "num_kokoro": num_kokoro, "seed": seed, "num_excluded_texts": len(exclude)}
    return write_corpus(
        rows,
        out,
        made_from=made_from,
        on_error="skip",
        overwrite=overwrite,
        num_workers=num_workers,
        show_progress=show_progress,
    )


def laptop_rows(
    *, num_clips: int = NUM_CLIPS, num_kokoro: int = NUM_KOKORO, seed: int = 0, exclude: Set[str] = frozenset()
) -> list[CorpusRow]:
    """What the corpus says and who says it, without saying it; for `exclude` see `make_laptop_corpus`."""
    if not 0 <= num_kokoro <= num_clips:
        raise ValueError(f"num_kokoro must be between 0 and num_clips={num_clips}, not {num_kokoro}")
    examples = wordlists.wordnet_examples()
    texts = _draw_texts(num_clips, examples, seed, exclude)
    short = [text for text, _ in texts if len(text.split()) <= _MAX_KOKORO_WORDS]
    by_kokoro = frozenset(short[:num_kokoro])
    return [_row_of_text(text, kind, text in by_kokoro, examples, seed, exclude) for text, kind in texts]


def _row_of_text(text: str, kind: str, by_kokoro: bool, examples: list[str], seed: int, exclude: Set[str]) -> CorpusRow:
    """Decide who says a text, how fast, and whether in a sentence: from the text alone, whatever the others are."""
    rng = random.Random(f"{seed}/cast/{text}")
    split = "validation" if rng.random() < _VALIDATION_SHARE * (3 if by_kokoro else 1) else "train"
    # flite has too few voices to hold one out.
    is_flite = rng.random() < _FLITE_SHARE and split == "train"
    engine = "kokoro" if by_kokoro else "flite" if is_flite else "espeak"
    before, after = surroundings(text, examples, rng, exclude) if rng.random() < _SENTENCE_SHARE else ("", "")
    request = SpeechRequest(engine, _draw_voice(engine, split, rng), text, rng.choice(SPEEDS), before, after)
    return CorpusRow(request, split, extra={"kind": kind})


def _draw_texts(num_texts: int, examples: list[str], seed: int, exclude: Set[str]) -> list[tuple[str, str]]:
    """Distinct texts and their kinds, in an order that chance decides; fewer where a kind runs dry."""
    texts = []
    taken = set(exclude)
    for kind, source in texts_of_kinds(examples, seed).items():
        wanted = round(KIND_SHARES[kind] * num_texts)
        fresh = (text for text in source if _is_fresh(text, taken))
        drawn = list(itertools.islice(fresh, wanted))
        if len(drawn) < wanted:
            logger.warning("only %d of %d texts of the kind %r could be drawn", len(drawn), wanted, kind)
        texts += [(text, kind) for text in drawn]
    return sorted(texts, key=lambda drawn: random.Random(f"{seed}/order/{drawn[0]}").random())


def _is_fresh(text: str, taken: set[str]) -> bool:
    """True for a text of one to six words not taken before; it is taken then."""
    normalized = normalize_term(text)
    if not 1 <= len(normalized.split()) <= 6 or normalized in taken:
        return False
    taken.add(normalized)
    return True


def texts_of_kinds(examples: list[str], seed: int) -> dict[str, Iterator[str]]:
    """Texts to say of each kind of `KIND_SHARES`, some of them more than once; `examples` are sentences."""
    lemmas = wordlists.wordnet_terms(max_words=4)
    lists = {
        "wordnet": [lemma for lemma in lemmas if " " not in lemma],
        "wordnet_phrase": [lemma for lemma in lemmas if " " in lemma],
        "medicine": wordlists.medical_terms(),
        "computing": [term for term in wordlists.computing_terms(max_words=4) if _is_plain(term)],
        "places": wordlists.place_names(max_words=4)[:8000],
    }
    rngs = {kind: random.Random(f"{seed}/{kind}") for kind in KIND_SHARES}
    drawn: dict[str, Iterator[str]] = {
        "everyday": _many(everyday_phrase, rngs["everyday"]),
        "fragment": filter(None, _many(lambda rng: fragment(rng.choice(examples), rng), rngs["fragment"])),
        "number": _many(number_phrase, rngs["number"]),
        "letter": _many(letter_phrase, rngs["letter"]),
    }
    return drawn | {kind: iter(rngs[kind].sample(terms, len(terms))) for kind, terms in lists.items()}


def _many(draw: Callable[[random.Random], str | None], rng: random.Random) -> Iterator:
    return (draw(rng) for _ in range(_MOST_DRAWS))


def _is_plain(term: str) -> bool:
    """Words that every engine reads as words: no digits, no signs, no acronym in lower case."""
    return all(word.isalpha() and (len(word) > 3 or word.isupper()) for word in term.split())


def surroundings(text: str, examples: list[str], rng: random.Random, exclude: Set[str]) -> tuple[str, str]:
    """Fragments of two other sentences to say before and after the text."""
    while True:
        before, after = (fragment(rng.choice(examples), rng, max_words=4) for _ in range(2))
        if before and after and normalize_term(f"{before} {text} {after}") not in exclude:
            return before, after


def _draw_voice(engine: str, split: str, rng: random.Random) -> str:
    voices = get_engine(engine).voices
    held_out = split == "validation"
    if engine == "kokoro":
        return rng.choice(HELD_OUT_VOICES if held_out else kokoro_cast(voices))
    if engine == "espeak":
        of_split = [voice for voice in voices if voice.endswith(_HELD_OUT_VARIANTS) == held_out]
        return rng.choice(of_split) + rng.choice(_PITCHES)
    return rng.choice(voices)


@functools.cache
def kokoro_cast(voices: tuple[str, ...]) -> list[str]:
    """The voices that are not held out, and mixtures of two of one accent."""
    cast = [voice for voice in voices if voice not in HELD_OUT_VOICES]
    pairs = [(one, other) for one in cast for other in cast if one < other and one[0] == other[0]]
    rng = random.Random("mixtures")
    drawn = rng.choices(pairs, k=2 * _KOKORO_VOICES)
    mixtures = dict.fromkeys(f"{one}+{other}@{rng.choice((25, 40, 50, 60, 75))}" for one, other in drawn)
    return cast + list(mixtures)[: _KOKORO_VOICES - len(cast)]
