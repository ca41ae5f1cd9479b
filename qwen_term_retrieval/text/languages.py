"""Language codes, as corpora and glossaries write them: "fr", "fr-CA", "en_US"."""

from __future__ import annotations

import functools

ENGLISH = "en"


@functools.lru_cache(maxsize=1 << 10)
def language_code(language: str | None) -> str | None:
    """One way of writing a code: lower case, "-" between its parts; None where nothing is said.

    >>> language_code("pt_BR"), language_code(" ")
    ('pt-br', None)
    """
    return (language or "").strip().replace("_", "-").lower() or None


@functools.lru_cache(maxsize=1 << 10)
def primary_language(language: str | None) -> str | None:
    """The code without its region.

    >>> primary_language("fr-CA")
    'fr'
    """
    code = language_code(language)
    return None if code is None else code.partition("-")[0]
