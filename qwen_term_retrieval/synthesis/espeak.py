"""espeak-ng through the shared library of the `espeakng-loader` wheel: formant synthesis, about 300 times real time.

A voice is `language[+variant][@pitch]`, such as ``en-us+f2@60``; the pitch runs from 0 to 100, 50 being the voice's
own. The library keeps its state in globals of the loaded instance. This module loads a private copy of the file, so
that the phoneme tower, which uses the same library, never finds its voice changed.
"""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import importlib.metadata
import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.storage.packages import PackageError, cache_root
from qwen_term_retrieval.synthesis.speech import Speech

_SYNCHRONOUS = 2
_DO_NOT_EXIT = 0x8000
_RATE, _PITCH = 1, 3
_UTF8 = 1
_COUNT_CHARACTERS = 1
_EVENT_LIST_END, _EVENT_WORD = 0, 1
_IPA_WITH_TIES = 0x02 | 0x80 | ord("^") << 8
_WORDS_PER_MINUTE = 165
# Loading a loaded library again returns the same instance.
_ONE_AT_A_TIME = threading.Lock()

# "en" is the library's name for British English.
_ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-029", "en-gb-x-gbcwmd", "en-gb-x-gbclan")
_VARIANTS = ("", "+f2", "+m3", "+f4", "+m1", "+Annie", "+Michael", "+m7", "+f5", "+Andy", "+steph", "+edward")


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class EspeakEngine:
    """espeak-ng; the times of words come from the engine's own events.

    The library carries flutter, wave phase and noise over from one utterance to the next. Each call therefore loads a
    fresh instance (5 ms), so that what is rendered depends on nothing but the arguments.
    """

    name = "espeak"

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise PackageError("espeak-ng is missing: pip install 'qwen_term_retrieval[phonemes,synthesis]'") from error
        self.version = importlib.metadata.version("espeakng-loader")
        self._data = Path(espeakng_loader.get_data_path())
        self._path = _private_copy(Path(espeakng_loader.get_library_path()), self.version)

    @property
    def voices(self) -> tuple[str, ...]:
        """Every accent with every variant that sounds like a person."""
        return tuple(accent + variant for variant, accent in itertools.product(_VARIANTS, _ACCENTS))

    def say(self, text: str, voice: str, speed: float = 1.0) -> tuple[np.ndarray, int]:
        """Speak `text`: float32 (num_samples,), and the sampling rate in Hz."""
        pcm, rate, _ = self._synthesize(text, voice, speed)
        return pcm, rate

    def say_in_sentence(self, before: str, term: str, after: str, voice: str, speed: float = 1.0) -> Speech:
        """Speak `before term after` as one sentence; start and end are the engine's times of the term's words."""
        text = " ".join(filter(None, (before, term, after)))
        pcm, rate, words = self._synthesize(text, voice, speed)
        first = len(before) + 1 if before else 0
        past = first + len(term)
        starts = [time for position, time in words if first <= position < past]
        ends = [time for position, time in words if position >= past]
        if not starts:
            raise ValueError(f"espeak-ng gave no time for {term!r} in {text!r}; choose another sentence")
        return Speech(pcm, rate, start=starts[0], end=ends[0] if ends else len(pcm) / rate)

    def phonemes(self, texts: Sequence[str], voice: str) -> list[str]:
        """IPA with stress marks; the letters of one sound are tied by ``^`` (``a^ɪ``)."""
        with self._fresh_library(voice) as (library, _):
            return [_phonemes_of(library, text) for text in texts]

    def _synthesize(self, text: str, voice: str, speed: float) -> tuple[np.ndarray, int, list[tuple[int, float]]]:
        """Also the words: the offset in `text` and the second at which each begins."""
        pieces: list[np.ndarray] = []
        words: list[tuple[int, float]] = []

        @_Callback
        def receive(samples, num_samples, events):
            if samples and num_samples > 0:
                pieces.append(np.ctypeslib.as_array(samples, shape=(num_samples,)).copy())
            for event in itertools.takewhile(lambda event: event.type != _EVENT_LIST_END, events):
                if event.type == _EVENT_WORD:
                    words.append((event.text_position - 1, event.audio_position / 1000))
            return 0

        with self._fresh_library(voice) as (library, rate):
            library.espeak_SetSynthCallback(receive)
            library.espeak_SetParameter(_RATE, round(_WORDS_PER_MINUTE * speed), 0)
            raw = text.encode()
            library.espeak_Synth(raw, len(raw) + 1, 0, _COUNT_CHARACTERS, 0, _UTF8, None, None)
        pcm = np.concatenate(pieces) if pieces else np.zeros(0, np.int16)
        return pcm.astype(np.float32) / 32768.0, rate, words

    @contextlib.contextmanager
    def _fresh_library(self, voice: str) -> Iterator[tuple[ctypes.CDLL, int]]:
        """The library with untouched globals, set to `voice`, and its sampling rate in Hz; one at a time."""
        with _ONE_AT_A_TIME:
            library = ctypes.CDLL(str(self._path))
            try:
                rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(self._data).encode(), _DO_NOT_EXIT)
                if rate <= 0:
                    raise PackageError(f"espeak-ng {self.version} cannot read its data in {self._data}; reinstall it")
                # Initialising seeds by the clock both generators that the breath noise of some voices draws on.
                ctypes.CDLL(None).srand(1)
                library.espeak_ng_SetRandSeed(ctypes.c_long(1))
                self._set_voice(library, voice)
                yield library, rate
                library.espeak_Terminate()
            finally:
                _ctypes.dlclose(library._handle)

    def _set_voice(self, library: ctypes.CDLL, voice: str) -> None:
        name, _, pitch = voice.partition("@")
        variant = name.partition("+")[2]
        # The library speaks with the plain voice, silently, where it does not know the variant.
        unknown = variant and not (self._data / "voices/!v" / variant).is_file()
        if unknown or library.espeak_SetVoiceByName(name.encode()):
            raise ValueError(f"espeak-ng has no voice {name!r}; some it has: {', '.join(self.voices[:6])}")
        library.espeak_SetParameter(_PITCH, int(pitch or 50), 0)


def _phonemes_of(library: ctypes.CDLL, text: str) -> str:
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    buffer = ctypes.create_string_buffer(text.encode())
    rest = ctypes.c_void_p(ctypes.addressof(buffer))
    clauses = []
    while rest.value:
        clause = library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA_WITH_TIES)
        clauses.append((clause or b"").decode().strip())
    return " ".join(filter(None, clauses))


def _private_copy(library: Path, version: str) -> Path:
    """A copy under another inode: the dynamic loader gives it globals of its own."""
    target = cache_root() / "espeak" / f"libespeak-ng-{version}.so"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as file:
            file.write(library.read_bytes())
    return target
