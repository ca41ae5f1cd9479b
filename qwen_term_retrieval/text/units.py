"""Amounts as they are said: "5 mg" is five milligrams, in the language of the term.

The words are those of Unicode CLDR, by way of Babel: its plural and its name of every unit in some 100 languages.
"""

from __future__ import annotations

import functools
import re

from babel import Locale, UnknownLocaleError
from babel.units import UnknownUnitError, format_unit, get_unit_name

from qwen_term_retrieval.text.languages import ENGLISH

# Symbols that are written after a number and not read as letters. Left out are those that are words ("in", "a", "pt").
SYMBOLS = {
    "mg": "mass-milligram", "g": "mass-gram", "kg": "mass-kilogram",
    "µg": "mass-microgram", "ug": "mass-microgram", "mcg": "mass-microgram", "lb": "mass-pound", "lbs": "mass-pound",
    "ml": "volume-milliliter", "mL": "volume-milliliter", "cl": "volume-centiliter", "dl": "volume-deciliter",
    "dL": "volume-deciliter", "l": "volume-liter", "L": "volume-liter", "cc": "volume-cubic-centimeter",
    "nm": "length-nanometer", "µm": "length-micrometer", "mm": "length-millimeter", "cm": "length-centimeter",
    "m": "length-meter", "km": "length-kilometer", "ft": "length-foot", "mi": "length-mile",
    "m²": "area-square-meter", "cm²": "area-square-centimeter", "km²": "area-square-kilometer",
    "m³": "volume-cubic-meter", "cm³": "volume-cubic-centimeter", "ha": "area-hectare",
    "ms": "duration-millisecond", "µs": "duration-microsecond", "ns": "duration-nanosecond", "s": "duration-second",
    "sec": "duration-second", "min": "duration-minute", "h": "duration-hour", "hr": "duration-hour",
    "Hz": "frequency-hertz", "kHz": "frequency-kilohertz", "MHz": "frequency-megahertz",
    "GHz": "frequency-gigahertz", "V": "electric-volt", "A": "electric-ampere", "mA": "electric-milliampere",
    "Ω": "electric-ohm", "W": "power-watt", "kW": "power-kilowatt", "MW": "power-megawatt",
    "kWh": "energy-kilowatt-hour", "J": "energy-joule", "kJ": "energy-kilojoule", "kcal": "energy-kilocalorie",
    "N": "force-newton",
    "Pa": "pressure-pascal", "hPa": "pressure-hectopascal", "kPa": "pressure-kilopascal", "bar": "pressure-bar",
    "psi": "pressure-pound-force-per-square-inch", "mmHg": "pressure-millimeter-ofhg",
    "kB": "digital-kilobyte", "KB": "digital-kilobyte", "MB": "digital-megabyte", "GB": "digital-gigabyte",
    "TB": "digital-terabyte", "PB": "digital-petabyte", "mol": "concentr-mole",
    "mph": "speed-mile-per-hour", "%": "concentr-percent", "‰": "concentr-permille",
    "°": "angle-degree", "°C": "temperature-celsius", "°F": "temperature-fahrenheit", "px": "graphics-pixel",
}  # fmt: skip
# English for what CLDR has no name of, one and many.
_ENGLISH_ONLY = {
    "dB": ("decibel", "decibels"), "IU": ("international unit", "international units"), "mEq": ("milliequivalent",
    "milliequivalents"), "rpm": ("revolution per minute", "revolutions per minute"), "bpm": ("beat per minute",
    "beats per minute"), "fps": ("frame per second", "frames per second"), "mmol": ("millimole", "millimoles"),
    "kbps": ("kilobit per second", "kilobits per second"), "Mbps": ("megabit per second", "megabits per second"),
    "Gbps": ("gigabit per second", "gigabits per second"), "Gy": ("gray", "grays"), "kDa": ("kilodalton",
    "kilodaltons"), "bp": ("base pair", "base pairs"), "kbp": ("kilobase pair", "kilobase pairs"),
}  # fmt: skip
PATTERN = "|".join(sorted(map(re.escape, {*SYMBOLS, *_ENGLISH_ONLY}), key=len, reverse=True))


def is_letter(symbol: str) -> bool:
    """Whether a symbol right behind a number is as likely a letter: "32B", "5G", "4K"."""
    return len(symbol) == 1 and symbol.isalpha() and symbol.isascii()


def say_amount(number: str, symbol: str, language: str | None) -> str | None:
    """A number and its unit in words, the number in digits; None where the language has no word for the unit.

    >>> say_amount("5", "mg", None), say_amount("1", "km", "fr")
    ('5 milligrams', '1 kilomètre')
    """
    value = float(number)
    if symbol in _ENGLISH_ONLY and language in (None, ENGLISH):
        return f"{number} {_ENGLISH_ONLY[symbol][value != 1]}"
    locale = _locale(language)
    if locale is None or symbol not in SYMBOLS:
        return None
    try:
        said = format_unit(int(value) if value.is_integer() else value, SYMBOLS[symbol], "long", locale=locale)
    except UnknownUnitError:
        return None
    # Grouping signs, some of them spaces, are none of the number's sounds.
    return re.sub(r"(?<=\d)[,.\u00a0\u202f’ ](?=\d{3}\b)", "", said) if value.is_integer() else said


def say_unit(symbol: str, language: str | None) -> str | None:
    """The name of a unit without a number, one of it; None where the language has no word for it."""
    if symbol in _ENGLISH_ONLY and language in (None, ENGLISH):
        return _ENGLISH_ONLY[symbol][0]
    one = say_amount("1", symbol, language)
    return None if one is None else one.removeprefix("1").strip()


def say_units(symbol: str, language: str | None) -> str | None:
    """The name of a unit without a number, many of it."""
    if symbol in _ENGLISH_ONLY and language in (None, ENGLISH):
        return _ENGLISH_ONLY[symbol][1]
    locale = _locale(language)
    return None if locale is None or symbol not in SYMBOLS else get_unit_name(SYMBOLS[symbol], "long", locale=locale)


@functools.cache
def _locale(language: str | None) -> Locale | None:
    try:
        return Locale.parse((language or ENGLISH).partition("-")[0])
    except (UnknownLocaleError, ValueError):
        return None
