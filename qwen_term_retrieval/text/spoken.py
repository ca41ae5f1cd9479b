"""What is written, as it is said: signs, units, amounts, acronyms and emoji in words.

A phonemizer reads spelling; "5 mg", "and/or", "24/7", "№5" and "IL-6" are not spelled as they are said, and some are
said in several ways. `spoken_forms` writes them out, the likeliest way first. What is written as it is said comes back
as it is, so that nearly all terms are pronounced as their phonemizer alone would.

Signs are put into English words; of other languages only amounts are written out (see `units.py`), the rest is left to
their phonemizers.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence

from qwen_term_retrieval.text.languages import ENGLISH, primary_language
from qwen_term_retrieval.text.units import PATTERN as UNITS
from qwen_term_retrieval.text.units import is_letter, say_amount, say_unit, say_units

MOST_FORMS = 3
# Short words that are said as words in lower case and letter by letter in capitals: "us" and "US" are two terms.
_WORDS_THAT_ARE_ACRONYMS = frozenset(
    {"us", "it", "who", "am", "or", "ad", "as", "at", "in", "is", "an", "do", "go", "he", "hi", "if", "me", "my", "no"}
    | {"of", "oh", "on", "so", "to", "up", "we", "id", "pa", "ma", "ms", "ph", "er", "ed", "pm"}
)
_VOWELS = frozenset("AEIOUY")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
# The micro sign and hyphens that do not break, signs of full width, and marks that nobody says.
_AS_USUAL = str.maketrans(
    {"μ": "µ", "‑": "-", "‐": "-", "℃": "°C", "℉": "°F", "™": " ", "®": " ", "©": " "}
    | {chr(wide): chr(wide - 0xFEE0) for wide in range(0xFF01, 0xFF5F)}
)
_CURRENCIES = {
    "$": ("dollar", "dollars"), "€": ("euro", "euros"), "£": ("pound", "pounds"), "¥": ("yen", "yen"),
    "₹": ("rupee", "rupees"), "₩": ("won", "won"), "₽": ("ruble", "rubles"), "₿": ("bitcoin", "bitcoins"),
    "¢": ("cent", "cents"),
}  # fmt: skip
_MAGNITUDES = {"k": "thousand", "K": "thousand", "M": "million", "m": "million", "bn": "billion", "B": "billion"}
_FRACTIONS = {
    "1/2": "one half", "1/3": "one third", "2/3": "two thirds", "1/4": "one quarter", "3/4": "three quarters",
    "½": "one half", "⅓": "one third", "⅔": "two thirds", "¼": "one quarter", "¾": "three quarters",
}  # fmt: skip
# Signs that are said wherever they stand, and those that are said only where nothing else is written.
_SIGNS = {
    "&": "and", "@": "at", "=": "equals", "×": "times", "÷": "divided by", "±": "plus or minus", "≤": "at most",
    "≥": "at least", "<": "less than", ">": "greater than", "%": "percent", "‰": "per mille", "°": "degrees",
    "№": "number", "§": "section", "¶": "paragraph", "√": "square root", "∞": "infinity", "≈": "about", "µ": "micro",
    "€": "euro", "£": "pound", "¥": "yen", "$": "dollar", "₹": "rupee", "₿": "bitcoin", "¢": "cent", "Ω": "omega",
}  # fmt: skip
_ALONE = {
    "&": ("ampersand", "and"), "-": ("dash", "hyphen", "minus"), "–": ("en dash", "dash"), "—": ("em dash", "dash"),
    "−": ("minus",), "/": ("slash",), "\\": ("backslash",), ".": ("dot", "period", "point"), ",": ("comma",),
    ":": ("colon",), ";": ("semicolon",), "?": ("question mark",), "!": ("exclamation mark",), "_": ("underscore",),
    "*": ("asterisk", "star"), "~": ("tilde",), "|": ("pipe", "vertical bar"), "^": ("caret",), "@": ("at sign", "at"),
    "#": ("hash", "pound sign", "number sign"), "+": ("plus",), "=": ("equals",), "$": ("dollar sign", "dollar"),
}  # fmt: skip
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
# Of nearly all terms nothing is written out, and one look says so.
_ORDINARY = re.compile(r"[a-z',;:()\[\] ]*(?:[A-Z][a-z',;:()\[\] ]+)*(?<=[a-z)])")


class AsSaid(str):
    """A text that is written as it is said, or sounds in double brackets, `[[k uː b]]`: nobody writes it out again.

    `written` is what it says: for encoders of meaning, which know terms as they are written.
    """

    written: str

    def __new__(cls, said: str, written: str | None = None) -> AsSaid:
        text = super().__new__(cls, said)
        text.written = said if written is None else written
        return text

    def __reduce__(self) -> tuple[type[AsSaid], tuple[str, str]]:
        return AsSaid, (str(self), self.written)


def as_written(text: str) -> str:
    """A text as its glossary has it."""
    return text.written if isinstance(text, AsSaid) else text


_Ways = tuple[str, ...]
_Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], _Ways]]


def spoken_forms(text: str, language: str | None = None) -> tuple[str, ...]:
    """How a term is said, in words and digits: at least one way, at most `MOST_FORMS`, the likeliest first.

    Where there are several, each is `AsSaid`.

    >>> spoken_forms("sepsis"), spoken_forms("5 mg")
    (('sepsis',), ('5 milligrams',))
    >>> spoken_forms("IL-6"), spoken_forms("and/or")
    (('I.L. 6', 'IL 6'), ('and or', 'and slash or'))
    """
    if isinstance(text, AsSaid) or _ORDINARY.fullmatch(text):
        return (text,)
    return _forms(text, language)


@functools.lru_cache(maxsize=1 << 14)
def _forms(text: str, language: str | None) -> tuple[str, ...]:
    forms = dict.fromkeys(_written_out(text, language, way, acronyms=True) for way in range(MOST_FORMS))
    return tuple(AsSaid(form, text) for form in forms)


def written_out(text: str, language: str | None = None) -> str:
    """The likeliest way that a term is said, by which terms are told apart: signs and amounts in words.

    Acronyms stay as they are, for a text in lower case names the same thing, but for those that are another word there.

    >>> written_out("5%"), written_out("IL-6"), written_out("/exit"), written_out("US"), written_out("us")
    ('5 percent', 'IL 6', 'slash exit', 'U.S.', 'us')
    """
    return text if _ORDINARY.fullmatch(text) else _written_out(text, language, 0, acronyms=False)


def _written_out(text: str, language: str | None, way: int, *, acronyms: bool) -> str:
    english = primary_language(language) in (None, ENGLISH)
    said = unicodedata.normalize("NFC", text).translate(_AS_USUAL)
    alone = said.strip()
    if english and alone in _ALONE and (acronyms or alone not in "+#"):
        return _choose(_ALONE[alone], way)
    said = _say_emoji(said)
    if english:
        said = re.sub(r"(?<=\d)[–−](?=\d)", _choose((" to ", " "), way), said)
    # Signs are told apart in any language, but said in English words in English alone.
    rules = [*_amounts(language), *(_ENGLISH if english or not acronyms else _ANY)]
    for pattern, ways_of in rules:
        said = pattern.sub(lambda found, ways_of=ways_of: _choose(ways_of(found), way), said)  # type: ignore[misc]
    if english:
        said = _say_acronyms(said, way, every=acronyms)
    return " ".join(said.split()) if said != text else text


def _choose(ways: Sequence[str], way: int) -> str:
    return ways[min(way, len(ways) - 1)]


# Rules: what is found in a text, and every way to say it -------------------------------------------------------------


def _rule(pattern: str, *ways: str) -> _Rule:
    return re.compile(pattern), lambda found: tuple(found.expand(way) for way in ways)


@functools.cache
def _amounts(language: str | None) -> list[_Rule]:
    """Numbers with units, and units by units, in the words of the language."""
    own = primary_language(language)

    def amount(found: re.Match[str]) -> _Ways:
        number, space, symbol, per = found["number"], found["space"], found["symbol"], found["per"]
        said = say_amount(number.replace(",", ""), symbol, own)
        if said is None or (symbol == "s" and not space):  # the 90s
            return (found[0],)
        if per:
            each = say_unit(per, own)
            return (found[0],) if each is None or own not in (None, ENGLISH) else (f" {said} per {each} ",)
        letter = f"{number} {symbol}"
        ways = (letter, said) if is_letter(symbol) and not space else (said,)
        return tuple(f" {each} " for each in ways)

    def ratio(found: re.Match[str]) -> _Ways:
        many, each = say_units(found["symbol"], own), say_unit(found["per"], own)
        alike = own in (None, ENGLISH) and len(found["symbol"] + found["per"]) > 2
        return (f" {many} per {each} ",) if many and each and alike else (found[0],)

    return [
        (
            re.compile(
                rf"(?<![\w.])(?P<number>{_NUMBER})(?P<space>[ \u00a0]?)(?P<symbol>{UNITS})(?:/(?P<per>{UNITS}))?"
                r"(?![\w²³/])"
            ),
            amount,
        ),
        (re.compile(rf"(?<![\w/])(?P<symbol>{UNITS})/(?P<per>{UNITS})(?![\w/])"), ratio),
    ]


def _money(found: re.Match[str]) -> _Ways:
    one, many = _CURRENCIES[found["sign"] or found["after"]]
    magnitude = _MAGNITUDES.get(found["magnitude"] or "", found["magnitude"] or "")
    number = (found["number"] or found["before"]).replace(",", "")
    return (f" {number} {magnitude} {one if number == '1' and not magnitude else many} ",)


def _power(found: re.Match[str]) -> _Ways:
    power = found[0].translate(_SUPERSCRIPTS).replace("-", "minus ").replace("+", "plus ")
    if power in ("2", "3"):
        named = {"2": "squared", "3": "cubed"}[power]
        return (f" {named} ", f" to the {power} ")
    return (f" to the {power} ", f" to the power of {power} ")


def _fraction(found: re.Match[str]) -> _Ways:
    parts = found[0].split("/")
    if len(parts) == 1:
        return (f" {_FRACTIONS[found[0]]} ",)
    plain = (" ".join(parts), " slash ".join(parts))
    return (f" {_FRACTIONS[found[0]]} ", *plain) if found[0] in _FRACTIONS else plain


_SIGN = "".join(map(re.escape, _CURRENCIES))
_MAGNITUDE = r"(?:\s?(?P<magnitude>k|K|M|bn|B|thousand|million|billion|trillion)(?!\w))?"
_ANY: list[_Rule] = [
    # A hyphen beside a digit joins what is said as two words; espeak-ng says "dash".
    _rule(r"(?<=\w)-(?=\d)|(?<=\d)-(?=\w)", " "),
]
_ENGLISH: list[_Rule] = [
    (re.compile(rf"(?P<sign>[{_SIGN}])\s?(?P<number>{_NUMBER}){_MAGNITUDE}(?P<before>)(?P<after>)"), _money),
    (
        re.compile(rf"(?<!\w)(?P<before>{_NUMBER})\s?{_MAGNITUDE}(?P<after>[{_SIGN}])(?P<sign>)(?P<number>)(?!\w)"),
        _money,
    ),
    (re.compile(r"(?<=[\w)])[⁺⁻]?[⁰¹²³⁴-⁹]+"), _power),
    (re.compile(r"(?<![\w/])\d+/\d+(?:/\d+)*(?![\w/])|[½⅓⅔¼¾]"), _fraction),
    _rule(r"(?<![\w.)])[-−–](?=\.?\d)", " minus ", " negative "),
    *_ANY,
    _rule(r"(?<=\d),(?=\d{3}(?!\d))", ""),
    _rule(r"(?<=\d)\.(?=\d)", " point "),
    _rule(r"(?<![\w.])\.(?=[A-Za-z])", "dot "),
    _rule(r"(?<=[a-z0-9])\.(?=(?:com|org|net|io|ai|js|py|gov|edu|dev|co|uk|de|fr)(?!\w))", " dot "),
    _rule(r"#(?=\d)", " number ", " hash "),
    _rule(r"(?<!\w)([A-Za-z])/([A-Za-z])(?![\w/])", r"\1. \2.", r"\1. slash \2."),
    _rule(r"(?<=\w)\s?/\s?(?=\w)", " ", " slash "),
    _rule(r"/", " slash "),
    (re.compile("[" + "".join(map(re.escape, _SIGNS)) + "]"), lambda found: (f" {_SIGNS[found[0]]} ",)),
]


# Acronyms and emoji --------------------------------------------------------------------------------------------------


def _say_acronyms(text: str, way: int, *, every: bool) -> str:
    """Letters with full stops behind them, which every phonemizer reads one by one.

    Args:
        way: 0 for the likeliest.
        every: all capitals that may be said in two ways, or those alone that are another word in lower case.
    """
    words = re.findall(r"[^\W\d_]+", text)
    shouted = len(words) > 1 and all(word.isupper() for word in words)

    def say(found: re.Match[str]) -> str:
        word = found[0]
        letters = "".join(f"{letter}." for letter in word) + (" " if text[found.end() :][:1].isdigit() else "")
        if word.lower() in _WORDS_THAT_ARE_ACRONYMS:
            return word if shouted else letters
        if not every or not _VOWELS & set(word) or len(word) > 4:
            return word
        return _choose((letters, word) if _is_spelled(word) else (word, letters), way)

    return re.sub(r"(?<![\w&'])[A-Z]{2,5}(?![^\W\d]|[&'])", say, text)


def _is_spelled(acronym: str) -> bool:
    """Whether capitals are rather said letter by letter: those of which a syllable is hard to make."""
    shape = "".join("v" if letter in _VOWELS else "c" for letter in acronym)
    return not re.fullmatch(r"c?c?v+c?c?v?c?", shape) or (shape[0] == "v" and len(shape) < 4) or len(shape) == 2


def _say_emoji(text: str) -> str:
    """Pictures by their names where nothing else is written, and without a sound beside words."""
    if not any(_is_picture(sign) for sign in text):
        return text
    beside = any(sign.isalnum() for sign in text)
    names = [
        (" " if beside else f" {unicodedata.name(sign, '').lower()} ") if _is_picture(sign) else sign
        for sign in text
        if unicodedata.category(sign) not in ("Cf", "Mn") or not sign > "\u2000"
    ]
    return re.sub(r" emoji modifier [\w -]*", " ", "".join(names))


def _is_picture(sign: str) -> bool:
    return sign > "\u2100" and unicodedata.category(sign) in ("So", "Sk") and not sign.isalnum() and sign not in "№℃℉™"
