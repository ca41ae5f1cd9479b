"""Words spoken by volunteers into their own microphones, for two children's programs that Debian carries.

KTuberling (KDE, GPL-2+): 72 English words, by what sounds like two speakers; here test material only. The sound theme
names its files after what is said. TuxPaint (GPL-2): some 6,000 short descriptions in nine languages, each with its
text; here training material, without the texts that occur twice in one language. TuxPaint's English recordings are
left alone. Both packages are fetched into the cache and unpacked there; nothing of them is kept in this repository.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real_speech.spelling import letters_of
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.storage.packages import RegistryPackage, fetch_package

# Licence: GPL-2.0-or-later.
KTUBERLING = RegistryPackage(
    "debian", "ktuberling-data", "4:22.12.3-1", "fba44c875bfa31ea488dadd9263e87a4dcaea0bd47d28817f6c0dc6d2af970ed"
)
# Licence: GPL-2.0-only.
TUXPAINT = RegistryPackage(
    "debian",
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
)
LANGUAGES = ("be", "bg", "ca", "da", "el", "es", "fr", "nl", "ro", "ru")
MAX_WORDS = 12

_THEME = re.compile(r"^(egypt|moon|pizzeria|tv)_")
_SPELLED = {
    "fallingstar": "falling star",
    "palmtree": "palm tree",
    "sphynx": "sphinx",
    "broccolli": "broccoli",
    "ufo": "UFO",
}
_DESCRIPTION = re.compile(r"(?P<stamp>.+)_desc_(?P<language>[a-z]{2})\.ogg")
_REMARK = re.compile(r"\([^)]*\)")


@dataclass(frozen=True)
class Word:
    """One recording and the word or words said in it."""

    key: str
    text: str
    path: Path


@functools.cache
def ktuberling_words() -> tuple[Word, ...]:
    """The English recordings, in key order.

    Raises:
        PackageError: the package cannot be fetched.
    """
    folder = fetch_package(KTUBERLING) / "usr/share/ktuberling/sounds/en"
    words = []
    for path in sorted(folder.glob("*.ogg")):
        name = _THEME.sub("", path.stem)
        words.append(Word(path.stem, _SPELLED.get(name, name), path))
    return tuple(words)


def is_ktuberling_text(text: str) -> bool:
    """Whether a recording says just this, however it is spelled."""
    return letters_of(text) in _ktuberling_letters()


@functools.cache
def _ktuberling_letters() -> frozenset[str]:
    return frozenset(letters_of(word.text) for word in ktuberling_words())


def ktuberling_utterances() -> Iterator[Utterance]:
    """The English recordings as a term-level corpus: each clip's one term is its text."""
    for word in ktuberling_words():
        yield Utterance(
            key=word.key,
            audio=word.path,
            text=word.text,
            terms=(word.text,),
            speaker="ktuberling-en",
            language="en",
            split="test",
            source=KTUBERLING.label,
        )


def tuxpaint_utterances(folder: Path | None = None) -> Iterator[Utterance]:
    """The descriptions in `LANGUAGES` of at most `MAX_WORDS` words; each clip's one term is its text.

    Recordings that are the same file, and further recordings of the same text in a language, are left out. `folder`
    holds stamps, `x_desc_fr.ogg` beside `x.txt`; left out, it is the package's.
    """
    if folder is None:
        folder = fetch_package(TUXPAINT) / "usr/share/tuxpaint/stamps"
    heard: set[str] = set()
    said: set[tuple[str, str]] = set()
    for path in sorted(folder.rglob("*_desc_*.ogg")):
        match = _DESCRIPTION.fullmatch(path.name)
        if match is None or match["language"] not in LANGUAGES:
            continue
        language = match["language"]
        text = _text_of(path.with_name(f"{match['stamp']}.txt"), language)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if not text or len(text.split()) > MAX_WORDS or digest in heard or (language, text) in said:
            continue
        heard.add(digest)
        said.add((language, text))
        yield Utterance(
            key=f"{language}/{path.relative_to(folder).with_suffix('').as_posix()}",
            audio=path,
            text=text,
            terms=(text,),
            speaker=f"tuxpaint-{language}",
            language=language,
            split="train",
            source=TUXPAINT.label,
        )


def _text_of(path: Path, language: str) -> str:
    """The description in a language: a line `xx.utf8=…` of the stamp's text file, without what is in brackets."""
    if not path.is_file():
        return ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(f"{language}.utf8="):
            return " ".join(_REMARK.sub(" ", line.partition("=")[2]).split()).rstrip(" .!:;")
    return ""
