"""The speech engines by name, one instance a process.

An engine is a small class with a `name`, a `version`, its `voices`, and two methods that depend on nothing but their
arguments: `say` speaks a text, `say_in_sentence` also tells when a term is spoken within running speech.
"""

from __future__ import annotations

import functools

from qwen_term_retrieval.synthesis.espeak import EspeakEngine
from qwen_term_retrieval.synthesis.flite import FliteEngine
from qwen_term_retrieval.synthesis.kokoro import KokoroEngine

SpeechEngine = EspeakEngine | FliteEngine | KokoroEngine

_ENGINES: dict[str, type[SpeechEngine]] = {"espeak": EspeakEngine, "flite": FliteEngine, "kokoro": KokoroEngine}
# The fastest first.
ENGINE_NAMES = tuple(_ENGINES)


@functools.cache
def get_engine(name: str) -> SpeechEngine:
    """The engine called `name`: "espeak", "flite" or "kokoro".

    Raises:
        ValueError: for another name.
        PackageError: if a package it needs cannot be had.
    """
    if name not in _ENGINES:
        raise ValueError(f"no speech engine {name!r}; there are {', '.join(ENGINE_NAMES)}")
    return _ENGINES[name]()
