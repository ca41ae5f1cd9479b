"""What a search answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TermMatch:
    """A term that was heard: as the glossary spells it, its cosine score in [-1, 1], where it was, in seconds.

    `probability` that it was said, where it was verified, else None. `language` is the one that the glossary names, if
    it names one; `threshold` is the term's own, where its entry has one.
    """

    term: str
    score: float
    start: float
    end: float
    term_id: int = field(repr=False)
    language: str | None = field(default=None, repr=False)
    probability: float | None = None
    threshold: float | None = field(default=None, repr=False)

    @property
    def confidence(self) -> float:
        """What thresholds and rankings go by: the probability, or the score of a match that was not verified."""
        return self.score if self.probability is None else self.probability

    def reaches(self, threshold: float | None) -> bool:
        """Whether it counts as heard: by the term's own threshold or, where it has none, by this one."""
        own = threshold if self.threshold is None else self.threshold
        return own is None or self.confidence >= own

    def overlaps(self, other: TermMatch) -> bool:
        return self.start < other.end and other.start < self.end


class BestOfEach:
    """Of each term the match that is surest."""

    def __init__(self) -> None:
        self._best: dict[int, TermMatch] = {}

    def add(self, matches: Iterable[TermMatch]) -> None:
        for match in matches:
            known = self._best.setdefault(match.term_id, match)
            if match.confidence > known.confidence:
                self._best[match.term_id] = match

    def best(self, top_k: int) -> list[TermMatch]:
        return sorted(self._best.values(), key=lambda match: (-match.confidence, match.start))[:top_k]
