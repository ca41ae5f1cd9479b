"""Which of some terms an index does not know yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qwen_term_retrieval.retrieval.indexes.state import IndexState
from qwen_term_retrieval.retrieval.indexes.terms import spelling_key
from qwen_term_retrieval.text.glossary import Term


def told_apart(terms: Iterable[Term], state: IndexState) -> Iterator[tuple[Term, bool, list[str]]]:
    """Every term, whether it is new, and the keys of its spellings."""
    terms = list(terms)
    keys = [[spelling_key(spelling, term.language) for spelling in term.spellings] for term in terms]
    # Within what is added, a language that is not said and English are one from the first that says English on.
    asked = [
        [
            key
            for spelling, own in zip(term.spellings, own_keys, strict=True)
            for key in _twins(spelling, own, term, state)
        ]
        for term, own_keys in zip(terms, keys, strict=True)
    ]
    owners = iter(state.owners([key for own in asked for key in own]))
    before: set[str] = set()
    for term, own, keys_asked in zip(terms, keys, asked, strict=True):
        known = [next(owners) is not None for _ in keys_asked]
        new = not any(known) and before.isdisjoint(map(_without_english, own))
        if new:
            before.update(map(_without_english, own))
        yield term, new, own


def _twins(spelling: str, key: str, term: Term, state: IndexState) -> list[str]:
    """The keys under which the index may have a spelling already."""
    twins = state.twins(term.language)
    return [key] if len(twins) == 1 else [spelling_key(spelling, twin) for twin in twins]


def _without_english(key: str) -> str:
    return key.removesuffix("@en")
