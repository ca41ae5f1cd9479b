"""One spelling for what is said: numbers and signs as words, for transcripts and terms alike.

A recogniser writes "30th" and "50%" where a glossary has "thirtieth" and "fifty percent". `normalize_term` spells
numbers; signs are spelled here. Without this a transcript that is right would count as wrong.
"""

from __future__ import annotations

import functools

from qwen_term_retrieval.text.spellings import normalize_term

_SIGNS = {
    "%": " percent ", "$": " dollar ", "&": " and ", "@": " at ", "+": " plus ", "=": " equals ",
    "*": " star ", "#": " pound ", "<": " less than ", ">": " greater than ",
}  # fmt: skip


@functools.lru_cache(maxsize=1 << 19)
def spell_out(text: str) -> str:
    """Normalise a transcript or a term; numbers and signs become the words that were said.

    >>> spell_out("The 13th, 50%!")
    'the thirteenth fifty percent'
    """
    for sign, words in _SIGNS.items():
        text = text.replace(sign, words)
    return normalize_term(text)


def letters_of(text: str) -> str:
    """What `spell_out` leaves, without spaces and apostrophes: equal for "X-ray" and "xray", "O'Clock" and "oclock"."""
    return spell_out(text).replace(" ", "").replace("'", "")
