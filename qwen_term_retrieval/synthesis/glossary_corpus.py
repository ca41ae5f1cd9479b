"""A term-level corpus from nothing but a glossary: every term, said by several voices."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from qwen_term_retrieval.synthesis.corpus_folder import CorpusRow, write_corpus
from qwen_term_retrieval.synthesis.engines import get_engine
from qwen_term_retrieval.synthesis.rendering import RenderReport, SpeechRequest
from qwen_term_retrieval.text.glossary import Glossary

TRAIN_VOICES = (
    "kokoro:af_heart",
    "flite:rms",
    "espeak:en-us",
    "kokoro:am_adam",
    "flite:slt",
    "espeak:en+f2",
    "kokoro:bf_alice",
    "flite:awb",
    "espeak:en-gb-scotland+m1",
    "kokoro:bm_lewis",
)
VALIDATION_VOICES = ("kokoro:af_kore", "kokoro:bm_george")
_SPEEDS = (0.9, 1.0, 1.1)


def synthesize_glossary(
    glossary: Glossary | str | Path | Iterable[str],
    out: str | Path,
    *,
    voices: Sequence[str] = TRAIN_VOICES,
    validation_voices: Sequence[str] = VALIDATION_VOICES,
    voices_per_term: int = 3,
    seed: int = 0,
    overwrite: bool = False,
    num_workers: int = 2,
    show_progress: bool = True,
) -> RenderReport:
    """Say every term of `glossary` (or file, or strings) and its aliases; write a corpus for `read_corpus` to `out`.

    Voices are given as ``engine:voice``. In `train` each spelling is said by `voices_per_term` of `voices`, in turn;
    in `validation` by one of `validation_voices` (none: no such split). An alias is a term of its own in the manifest;
    the glossary, given at training, joins it to its term.

    Raises:
        FileExistsError: if `out` exists and `overwrite` is not set.
        ValueError: for a voice that does not exist, or more voices per term than there are.
    """
    if isinstance(glossary, str | Path):
        glossary = Glossary.from_file(glossary)
    entries = glossary if isinstance(glossary, Glossary) else Glossary(glossary)
    if not 1 <= voices_per_term <= len(voices):
        raise ValueError(f"voices_per_term must be between 1 and the number of voices, {len(voices)}")
    train = [_parse_voice(voice) for voice in voices]
    validation = [_parse_voice(voice) for voice in validation_voices]
    rng = random.Random(seed)
    rows = []
    # Composed, because engines make sounds of accents that stand apart from their letters.
    spellings = (unicodedata.normalize("NFC", spelling) for term in entries for spelling in term.spellings)
    for index, text in enumerate(spellings):
        turns = [train[(index * voices_per_term + turn) % len(train)] for turn in range(voices_per_term)]
        rows += [CorpusRow(SpeechRequest(*voice, text, rng.choice(_SPEEDS)), "train") for voice in turns]
        if validation:
            voice = validation[index % len(validation)]
            rows.append(CorpusRow(SpeechRequest(*voice, text, rng.choice(_SPEEDS)), "validation"))
    return write_corpus(
        rows,
        out,
        made_from={"glossary": entries.source, "terms": len(entries), "voices": list(voices)},
        overwrite=overwrite,
        num_workers=num_workers,
        show_progress=show_progress,
    )


def _parse_voice(voice: str) -> tuple[str, str]:
    name, colon, of_engine = voice.partition(":")
    if not colon:
        raise ValueError(f"voice {voice!r}: write it as engine:voice, for example {TRAIN_VOICES[0]!r}")
    engine = get_engine(name)
    # espeak-ng's variants and pitches are too many to list; the engine itself refuses an unknown one.
    if name != "espeak" and of_engine not in engine.voices:
        raise ValueError(f"{name} has no voice {of_engine!r}; it has {', '.join(engine.voices)}")
    return name, of_engine
