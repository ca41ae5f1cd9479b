"""What will be listened for: the terms of a glossary as a model says them, and what of it was left out.

It takes the model's phonemizers alone, no weights, so that a glossary can be looked over before anything is searched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_term_retrieval.models.configuration import TermRetrievalConfig
from qwen_term_retrieval.models.text_towers.tower import pronouncer_of_config
from qwen_term_retrieval.text.glossary import Glossary, Term
from qwen_term_retrieval.text.pronouncing import Pronouncer, check_glossary, is_sounds, unspeakable

_AT_ONCE = 4096


@dataclass(frozen=True)
class Way:
    """One way that a term is said: in words, None where the entry gives the sounds, and in sounds."""

    words: str | None
    sounds: tuple[str, ...]


@dataclass(frozen=True)
class PronouncedTerm:
    """A term and every way that it is said; `unread` are the letters that the model cannot read."""

    term: Term
    ways: tuple[Way, ...]
    unread: str = ""

    @property
    def is_left_out(self) -> bool:
        """Whether nothing of it can be said, so that a search leaves it out."""
        return bool(self.unread) and not self.ways

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what an entry does not say is left out."""
        term = self.term
        record: dict[str, Any] = {"term": term.text, "ways": [_way_record(way) for way in self.ways]}
        record |= {"aliases": list(term.aliases)} if term.aliases else {}
        record |= {"language": term.language} if term.language else {}
        record |= {"weight": term.weight} if term.weight != 1.0 else {}
        record |= {} if term.threshold is None else {"threshold": term.threshold}
        return record | ({"unread": self.unread} if self.unread else {})


@dataclass(frozen=True)
class PronouncedGlossary:
    """A glossary as it is said.

    Attributes:
        alike: terms that are said with the same sounds, which no search by sound tells apart.
        left_out: what is dropped, a line each.
        unknown_keys: keys of entries that say nothing.
    """

    source: str
    terms: tuple[PronouncedTerm, ...]
    alike: tuple[tuple[str, ...], ...]
    left_out: tuple[str, ...]
    unknown_keys: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "glossary": self.source,
            "terms": [term.to_dict() for term in self.terms],
            "alike": [list(group) for group in self.alike],
            "left_out": list(self.left_out),
            "unknown_keys": list(self.unknown_keys),
        }

    def lines(self) -> Iterator[str]:
        """The same for people, term by term."""
        width = min(max((len(_label(each.term)) for each in self.terms), default=0), 40)
        for each in self.terms:
            ways = each.ways or (Way(None, ()),)
            for number, way in enumerate(ways):
                label = _label(each.term) if number == 0 else ""
                yield f"{label:<{width}}  {_shown(way, each)}".rstrip()
        for group in self.alike:
            yield f"said alike: {', '.join(group)}"
        for line in self.left_out:
            yield f"left out: {line}"
        if self.unknown_keys:
            yield f"not understood, and left out: {', '.join(self.unknown_keys)}"


def pronounce_glossary(glossary: Glossary, config: TermRetrievalConfig | str | Path) -> PronouncedGlossary:
    """Say every term of a glossary as a model does.

    Args:
        glossary: the terms.
        config: of the model, or its folder or Hub id.

    Raises:
        ValueError: the model has no phonemizer; a language or a sound that it does not have.
        PhonemizerError: its phonemizer cannot be had here.
    """
    if not isinstance(config, TermRetrievalConfig):
        config = TermRetrievalConfig.from_pretrained(config)
    pronouncer = pronouncer_of_config(config)
    check_glossary(glossary, pronouncer)
    nothing, _ = unspeakable(glossary, pronouncer)
    mute = {term.term_id for term in nothing}
    terms = tuple(_pronounced(glossary, pronouncer, mute))
    left_out = [f"{term.text!r}: the model cannot read {term.text!r}" for term in nothing]
    return PronouncedGlossary(
        glossary.source,
        terms,
        tuple(_alike(terms)),
        (*glossary.name_dropped(), *left_out),
        tuple(glossary.unknown_keys),
    )


def _pronounced(glossary: Glossary, pronouncer: Pronouncer, mute: set[int]) -> Iterator[PronouncedTerm]:
    for first in range(0, len(glossary), _AT_ONCE):
        terms = glossary[first : first + _AT_ONCE]
        said = [(term, way) for term in terms for way in term.sayings if term.term_id not in mute]
        sounds = pronouncer.pronunciations([way for _, way in said], [term.language for term, _ in said])
        ways_of: dict[int, dict[Way, None]] = {term.term_id: {} for term in terms}
        for (term, way), spoken in zip(said, sounds, strict=True):
            words = None if is_sounds(way) else str(way)
            ways_of[term.term_id].update((Way(words, tuple(symbols)), None) for symbols in spoken)
        for term in terms:
            unread = "".join(dict.fromkeys("".join(pronouncer.unread(way, term.language) for way in term.sayings)))
            yield PronouncedTerm(term, tuple(ways_of[term.term_id]), unread)


def _alike(terms: tuple[PronouncedTerm, ...]) -> Iterator[tuple[str, ...]]:
    by_sounds: dict[tuple[str, ...], dict[str, None]] = {}
    for each in terms:
        for way in each.ways:
            if way.sounds:
                by_sounds.setdefault(way.sounds, {})[each.term.text] = None
    yield from dict.fromkeys(tuple(group) for group in by_sounds.values() if len(group) > 1)


def _way_record(way: Way) -> dict[str, Any]:
    return {"words": way.words, "sounds": list(way.sounds)} if way.words is not None else {"sounds": list(way.sounds)}


def _label(term: Term) -> str:
    return f"{term.text} ({term.language})" if term.language else term.text


def _shown(way: Way, each: PronouncedTerm) -> str:
    if each.is_left_out:
        return f"– cannot be said: the model does not read {each.unread}"
    about = []
    if way.words is None:
        about.append("as the entry says")
    elif way.words != each.term.text:
        about.append(f"“{way.words}”")
    if not way.sounds:
        about.append("no sound that the model knows")
    if each.unread:
        about.append(f"without {each.unread}")
    if each.term.weight != 1.0:
        about.append(f"weight {each.term.weight:g}")
    if each.term.threshold is not None:
        about.append(f"threshold {each.term.threshold:g}")
    return f"{' '.join(way.sounds)}{'   ' if way.sounds and about else ''}{', '.join(about)}"
