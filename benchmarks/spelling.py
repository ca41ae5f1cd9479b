"""One spelling for what is said: numbers, ordinals and signs as words, for transcripts and terms alike.

A recogniser writes "30th" and "50%" where a glossary has "thirtieth" and "fifty percent". Without this a transcript
that is right counts as wrong, and "30th" would stand in the bank as a distractor of "thirtieth".
"""

from __future__ import annotations

import functools
import re

from num2words import num2words

from qwen_term_retrieval.text.glossary import normalize_term

_ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th)\b")
_SIGNS = {
    "%": " percent ", "$": " dollar ", "&": " and ", "@": " at ", "+": " plus ", "=": " equals ",
    "*": " star ", "#": " pound ", "<": " less than ", ">": " greater than ",
}  # fmt: skip


@functools.lru_cache(maxsize=1 << 19)
def spell_out(text: str) -> str:
    """Normalise a transcript or a term; numbers, ordinals and signs become the words that were said.

    >>> spell_out("The 13th, 50%!")
    'the thirteenth fifty percent'
    """
    text = _ORDINAL.sub(lambda digits: num2words(int(digits[1]), to="ordinal").replace("-", " "), text)
    for sign, words in _SIGNS.items():
        text = text.replace(sign, words)
    return normalize_term(text)


def letters_of(text: str) -> str:
    """What `spell_out` leaves, without spaces and apostrophes: equal for "X-ray" and "xray", "O'Clock" and "oclock"."""
    return spell_out(text).replace(" ", "").replace("'", "")
