"""What a search answers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TermMatch:
    """A term that was heard: as the glossary spells it, its cosine score in [-1, 1], where it was, in seconds.

    `language` is the one that the glossary names, if it names one.
    """

    term: str
    score: float
    start: float
    end: float
    term_id: int = field(repr=False)
    language: str | None = field(default=None, repr=False)

    def overlaps(self, other: TermMatch) -> bool:
        return self.start < other.end and other.start < self.end
