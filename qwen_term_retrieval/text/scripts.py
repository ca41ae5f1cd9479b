"""Which writing a voice can read: a voice of English names the letters of others, "Chinese letter", or is silent."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable

_LATIN = "LATIN"
# What espeak-ng's voices read beside Latin. Its Japanese has no kanji.
_SCRIPTS_OF = {
    "CYRILLIC": ("ru", "uk", "be", "bg", "mk", "sr", "kk", "ky", "tt", "ba", "cv", "nog"),
    "GREEK": ("el", "grc"),
    "CJK": ("cmn", "zh", "yue", "hak"),
    "HIRAGANA": ("ja",),
    "KATAKANA": ("ja",),
    "KATAKANA-HIRAGANA": ("ja",),
    "HANGUL": ("ko",),
    "ARABIC": ("ar", "fa", "ur", "sd", "ug"),
    "HEBREW": ("he",),
    "DEVANAGARI": ("hi", "mr", "ne", "kok"),
    "BENGALI": ("bn", "as", "bpy"),
    "GUJARATI": ("gu",),
    "GURMUKHI": ("pa",),
    "ORIYA": ("or",),
    "TAMIL": ("ta",),
    "TELUGU": ("te",),
    "KANNADA": ("kn",),
    "MALAYALAM": ("ml",),
    "SINHALA": ("si",),
    "THAI": ("th",),
    "MYANMAR": ("my",),
    "GEORGIAN": ("ka",),
    "ARMENIAN": ("hy", "hyw"),
    "ETHIOPIC": ("am",),
    "CHEROKEE": ("chr",),
}


@functools.lru_cache(maxsize=1 << 12)
def script_of(letter: str) -> str | None:
    """The script of a letter as Unicode names it; None of what is no letter.

    >>> script_of("é"), script_of("京"), script_of("7")
    ('LATIN', 'CJK', None)
    """
    if not letter.isalpha():
        return None
    name = unicodedata.name(letter, "UNKNOWN")
    # Letters that are of no language: "ª", the micro sign, mathematical alphabets.
    if unicodedata.normalize("NFKC", letter) != letter:
        return script_of(unicodedata.normalize("NFKC", letter)[0])
    return "CJK" if name.startswith(("CJK", "KANGXI")) else name.split()[0]


def foreign_letters(text: str, language: str | None) -> str:
    """The letters of a text that a voice of this language cannot read.

    Single Greek letters have names that every voice knows: "β-blocker".

    >>> foreign_letters("東京 tower", "en"), foreign_letters("β-blocker", "en")
    ('東京', '')
    """
    if text.isascii():
        return ""
    return "".join(
        letter
        for place, letter in enumerate(text)
        if (script := script_of(letter)) not in (None, _LATIN, "MODIFIER")
        and language not in _SCRIPTS_OF.get(script or "", ())
        and not (script == "GREEK" and _stands_alone(text, place))
    )


def scripts_in(texts: Iterable[str]) -> list[str]:
    """The scripts of all letters, as people call them, the commonest first."""
    counts: dict[str, int] = {}
    for text in texts:
        for letter in text:
            script = script_of(letter)
            if script is not None:
                counts[script] = counts.get(script, 0) + 1
    named = {"CJK": "Chinese characters"}
    return [named.get(script, script.capitalize()) for script in sorted(counts, key=lambda script: -counts[script])]


def _stands_alone(text: str, place: int) -> bool:
    beside = text[max(place - 1, 0) : place] + text[place + 1 : place + 2]
    return not any(script_of(letter) == "GREEK" for letter in beside)
