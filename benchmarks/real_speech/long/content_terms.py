"""The glossary of a text: its content words, and runs of up to four of them.

A term is a run of one to four words that stand one after the other, with no mark of a pause between them and no stop
word among them; numbers and signs are spelled out as they are said. Stop words are those that no glossary would hold
alone: articles, pronouns, auxiliaries, prepositions, conjunctions, and adverbs of place, time and degree. Number
words, "please" and "press" are content. A word of one letter is no term alone, but may be part of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from benchmarks.real_speech.spelling import spell_out
from qwen_term_retrieval.text.spellings import spoken_spellings

MAX_WORDS = 4
_STOP_WORDS_BY_KIND = {
    "articles and demonstratives": "a an the this that these those",
    "pronouns": "i me my mine myself you your yours yourself he him his she her hers it its we us our they them their "
    "theirs themselves who whom whose which what",
    "auxiliaries": "am is are was were be been being do does did done has have had will would shall should can cannot "
    "could may might must let",
    "contractions": "don't didn't doesn't can't won't isn't aren't wasn't weren't i'm i'd i'll i've you'd you'll "
    "you've you're it's that's there's they're we're we've",
    "prepositions": "about above after against at before behind below between by during for from in into of off on "
    "onto out over since through to toward under until up upon with within without",
    "conjunctions": "and or nor but if because while when where whether than then so as though although unless",
    "quantifiers": "not no yes any all some each every both either neither other others such only own same",
    "adverbs": "too very just also again now here there how why ever never else still already currently",
}
STOP_WORDS = frozenset(word for words in _STOP_WORDS_BY_KIND.values() for word in words.split())
_PAUSE = re.compile(r"[,.;:!?…]+(?=\s|$)|\s[-–—]+\s|[()\"]")


def content_terms(texts: Iterable[str]) -> list[str]:
    """The terms of all texts, spelled out, each once, in the order of the alphabet.

    >>> content_terms(["Please enter your 2 digit pin, then hold."])[:4]
    ['digit', 'digit pin', 'enter', 'hold']
    """
    return sorted({term for text in texts for phrase in _PAUSE.split(text) for term in _runs(phrase)})


def _runs(phrase: str) -> Iterator[str]:
    words = spell_out(phrase).split()
    for first in range(len(words)):
        for end in range(first + 1, min(first + MAX_WORDS, len(words)) + 1):
            if words[end - 1] in STOP_WORDS:
                break
            term = " ".join(words[first:end])
            if len(term) > 1:
                yield term


def terms_in(text: str, glossary: frozenset[str]) -> tuple[str, ...]:
    """The terms of a glossary, spelled out, whose words stand in a text, whatever stands between them."""
    return tuple(
        dict.fromkeys(term for term in spoken_spellings(spell_out(text), max_words=MAX_WORDS) if term in glossary)
    )
