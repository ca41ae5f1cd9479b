"""The English prompts of the Asterisk telephone exchange: 551 recordings of one real speaker, with transcripts.

Debian carries them as two packages, the recordings (G.722, 16 kHz) and the transcripts; both are fetched into the
cache and unpacked there, never installed, and nothing of them is kept in this repository (CC-BY-SA-3.0, recorded by
Allison Smith). They are test material only: no training corpus may hold a text for which
`is_asterisk_text` is true.
"""

from __future__ import annotations

import functools
import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.real_speech.spelling import letters_of
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.storage.packages import RegistryPackage, fetch_package
from qwen_term_retrieval.text.spellings import normalize_term

# Licence: CC-BY-SA-3.0.
RECORDINGS = RegistryPackage(
    "debian",
    "asterisk-core-sounds-en-g722",
    "1.6.1-1",
    "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
)
# Licence: CC-BY-SA-3.0.
TRANSCRIPTS = RegistryPackage(
    "debian", "asterisk-core-sounds-en", "1.6.1-1", "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"
)
SAMPLING_RATE = 16_000
MAX_SECONDS = 30.0  # what a Whisper encoder hears at once

_ANNOTATION = re.compile(r"\[[^]]*\]|<[^>]*>|\([^)]*\)")
_ELLIPSIS = re.compile(r"\s*\.{2,}\s*")
_FINAL_POINT = re.compile(r"(?<!\b\w)[.,;:!?]+$")  # the point of "A.M." stays


@dataclass(frozen=True)
class Prompt:
    """One recording: its key is the path without suffix, its text what is said, without remarks in brackets."""

    key: str
    text: str
    path: Path
    seconds: float

    @property
    def num_words(self) -> int:
        return len(normalize_term(self.text).split())

    def pcm(self) -> NDArray[np.int16]:
        return decode_g722(self.path)


@dataclass(frozen=True)
class PromptSet:
    """The prompts in key order, and the keys that were left out, by reason."""

    prompts: list[Prompt]
    left_out: dict[str, list[str]]

    def summary(self) -> str:
        reasons = ", ".join(f"{len(keys)} {reason}" for reason, keys in self.left_out.items())
        return f"{len(self.prompts)} prompts, {sum(p.seconds for p in self.prompts):.0f} s; left out: {reasons}"


def read_prompts() -> PromptSet:
    """Every prompt in which something is said, of at most `MAX_SECONDS`.

    Raises:
        PackageError: the packages cannot be fetched.
        ValueError: a recording without transcript or the reverse; the packages are pinned, so that is damage.
    """
    folder = fetch_package(RECORDINGS) / "usr/share/asterisk/sounds/en_US_f_Allison"
    transcripts = read_transcripts(_transcript_file())
    prompts: list[Prompt] = []
    left_out: dict[str, list[str]] = {"without speech": [], f"longer than {MAX_SECONDS:.0f} s": []}
    without_speech, too_long = left_out.values()
    for path in sorted(folder.rglob("*.g722")):
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key not in transcripts:
            raise ValueError(f"{path}: no transcript for {key!r}. Delete the package's folder and fetch it again.")
        text, seconds = spoken_text(transcripts[key]), path.stat().st_size * 2 / SAMPLING_RATE
        if not normalize_term(text):
            without_speech.append(key)
        elif seconds > MAX_SECONDS:
            too_long.append(key)
        else:
            prompts.append(Prompt(key, text, path, seconds))
    return PromptSet(prompts, left_out)


def asterisk_texts() -> frozenset[str]:
    """Normalised text of every prompt, recorded or not: what a training corpus must not hold."""
    transcripts = read_transcripts(_transcript_file())
    return frozenset(normalize_term(spoken_text(text)) for text in transcripts.values()) - {""}


def is_asterisk_text(text: str) -> bool:
    """Whether a prompt says just this, however it is spelled ("X-ray" for "xray", "30th" for "thirtieth")."""
    return letters_of(text) in _letters_of_texts()


@functools.cache
def _letters_of_texts() -> frozenset[str]:
    return frozenset(letters_of(text) for text in asterisk_texts())


def _transcript_file() -> Path:
    return fetch_package(TRANSCRIPTS) / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"


def read_transcripts(path: Path) -> dict[str, str]:
    """Lines of `key: text`; blank lines and those that open with `;` hold nothing."""
    transcripts: dict[str, str] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip() or line.startswith(";"):
                continue
            key, colon, text = line.strip().partition(":")
            if not colon or key in transcripts:
                raise ValueError(f"{path}, line {number}: expected a new 'key: text', not {line.strip()[:60]!r}")
            transcripts[key] = text.strip()
    return transcripts


def spoken_text(transcript: str) -> str:
    """The words of a transcript as a glossary would write them.

    >>> spoken_text("IAX (note: does not say '2')")
    'IAX'
    >>> spoken_text("...to lock, or unlock the conference.")
    'to lock, or unlock the conference'
    """
    words = _ELLIPSIS.sub(" ", _ANNOTATION.sub(" ", transcript))
    return _FINAL_POINT.sub("", " ".join(words.split()))


def decode_g722(path: Path) -> NDArray[np.int16]:
    """Decode a headerless G.722 file to int16 (num_samples,), 16 kHz."""
    import av

    with av.open(str(path), format="g722") as container:
        blocks = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate(blocks)


def utterances(prompts: list[Prompt]) -> Iterator[Utterance]:
    """The prompts as a term-level corpus: each clip's one term is its text."""
    for prompt in prompts:
        yield Utterance(
            key=prompt.key,
            audio=prompt.pcm(),
            sampling_rate=SAMPLING_RATE,
            text=prompt.text,
            terms=(prompt.text,),
            speaker="allison-smith",
            language="en",
            split="test",
            source=RECORDINGS.label,
        )
