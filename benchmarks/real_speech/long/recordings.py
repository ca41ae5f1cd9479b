"""A recording, and what is said where in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE

Span = tuple[float, float]
TermTimes = Callable[[NDArray[np.int16], str, str], Span | None]
"""(pcm of a clip, its text, a term said in it) to the term's start and end in the clip; None where it cannot tell."""


@dataclass(frozen=True)
class Place:
    """A stretch of a recording whose text is known, in seconds, and the glossary's terms that are said in it.

    A term is said somewhere in the stretch; just where is known of those in `spans` alone.
    """

    start: float
    end: float
    text: str
    terms: tuple[str, ...] = ()
    spans: Mapping[str, Span] = field(default_factory=dict)


@dataclass(frozen=True)
class Recording:
    """pcm: int16 (num_samples,), 16 kHz. Places are in order and do not overlap; between them nobody speaks."""

    key: str
    pcm: NDArray[np.int16]
    places: tuple[Place, ...]
    speaker: str

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLING_RATE

    def pcm_of(self, place: Place) -> NDArray[np.int16]:
        return self.pcm[round(place.start * SAMPLING_RATE) : round(place.end * SAMPLING_RATE)]


@dataclass(frozen=True)
class SearchedSet:
    """Recordings that are all searched for the terms of one glossary.

    `title` says what they are; `joined`: they are streams of many clips, in which a term counts each time that it is
    said, and not clips in which it counts once.
    """

    name: str
    title: str
    recordings: list[Recording]
    joined: bool = False

    @property
    def minutes(self) -> float:
        return sum(recording.seconds for recording in self.recordings) / 60

    @property
    def places(self) -> list[Place]:
        return [place for recording in self.recordings for place in recording.places]

    def facts(self) -> dict[str, object]:
        """What every number stands beside."""
        places = self.places
        return {
            "title": self.title,
            "recordings": len(self.recordings),
            "clips": len(places),
            "clips with a term": sum(bool(place.terms) for place in places),
            "terms said": sum(len(place.terms) for place in places),
            "minutes": round(self.minutes, 2),
            "speakers": len({recording.speaker for recording in self.recordings}),
        }
