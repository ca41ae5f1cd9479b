"""flite 2.2 through its shared libraries, unpacked from the Debian package: four voices, about 20 times real time."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from qwen_term_retrieval.storage.packages import PackageError, RegistryPackage, fetch_package
from qwen_term_retrieval.synthesis.speech import Speech

# Licence: BSD-like (flite, CMU voices).
LIBFLITE = RegistryPackage(
    "debian", "libflite1", "2.2-5", "bfa8c591f1b47730b30b372ec38e02918a1c9795eada67684e1746390ad2f061"
)
# flite links to ALSA, although nothing is played here; a minimal system lacks it.
# Licence: LGPL-2.1-or-later.
LIBASOUND = RegistryPackage(
    "debian", "libasound2", "1.2.8-1+b1", "44c77b076a7b11ae99712439022d822245b1994c435da564ebd320bb676faf4c"
)
_LIBRARIES = ("libflite", "libflite_usenglish", "libflite_cmulex")
_VOICES = ("rms", "slt", "awb", "kal16")
_FIRST_SEGMENT = b"R:Token.daughter1.R:SylStructure.daughter1.daughter1.R:Segment.p.end"
_LAST_SEGMENT = b"R:Token.daughtern.R:SylStructure.daughtern.daughtern.R:Segment.end"


class _Voice(ctypes.Structure):
    """The first fields of flite's `cst_voice`."""

    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


class _Wave(ctypes.Structure):
    """flite's `cst_wave`."""

    _fields_ = (
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


class FliteEngine:
    """flite; the times of words come from the segments of the synthesised utterance."""

    name = "flite"
    version = LIBFLITE.version
    voices = _VOICES

    def __init__(self) -> None:
        folder = _library_folder(LIBFLITE)
        try:
            ctypes.CDLL("libasound.so.2", mode=ctypes.RTLD_GLOBAL)
        except OSError:
            _load(_library_folder(LIBASOUND) / "libasound.so.2")
        self._libraries = {name: _load(folder / f"{name}.so.1") for name in _LIBRARIES}
        self._flite = _declare(self._libraries["libflite"])
        self._flite.flite_init()
        self._loaded: dict[str, _Voice] = {}
        self._folder = folder

    def say(self, text: str, voice: str, speed: float = 1.0) -> tuple[np.ndarray, int]:
        """Speak `text`: float32 (num_samples,), and the sampling rate in Hz."""
        pcm, rate, _ = self._synthesize(text, voice, speed)
        return pcm, rate

    def say_in_sentence(self, before: str, term: str, after: str, voice: str, speed: float = 1.0) -> Speech:
        """Speak `before term after` as one sentence; start and end are those of the term's first and last segment."""
        text = " ".join(filter(None, (before, term, after)))
        pcm, rate, words = self._synthesize(text, voice, speed)
        if len(words) != len(text.split()):
            raise ValueError(f"flite split {text!r} into {len(words)} tokens; choose another sentence")
        first = len(before.split())
        last = first + len(term.split()) - 1
        return Speech(pcm, rate, start=words[first][0], end=words[last][1])

    def _synthesize(self, text: str, voice: str, speed: float) -> tuple[np.ndarray, int, list[tuple[float, float]]]:
        loaded = self._voice(voice)
        self._flite.flite_feat_set_float(loaded.features, b"duration_stretch", 1.0 / speed)
        ctypes.CDLL(None).srand(1)  # the excitation noise draws on the C library's generator
        utterance = self._flite.flite_synth_text(text.encode(), ctypes.byref(loaded))
        if not utterance:
            raise ValueError(f"flite could not speak {text!r}")
        try:
            wave = self._flite.utt_wave(utterance).contents
            pcm = np.ctypeslib.as_array(wave.samples, shape=(wave.num_samples,)).astype(np.float32) / 32768.0
            return pcm, wave.sample_rate, self._word_times(utterance)
        finally:
            self._flite.delete_utterance(utterance)

    def _word_times(self, utterance: int) -> list[tuple[float, float]]:
        times = []
        token = self._flite.relation_head(self._flite.utt_relation(utterance, b"Token"))
        while token:
            start, end = (self._flite.ffeature_float(token, path) for path in (_FIRST_SEGMENT, _LAST_SEGMENT))
            times.append((start, end))
            token = self._flite.item_next(token)
        return times

    def _voice(self, name: str) -> _Voice:
        if name not in _VOICES:
            raise ValueError(f"flite has no voice {name!r}; it has {', '.join(_VOICES)}")
        if name not in self._loaded:
            library = _load(self._folder / f"libflite_cmu_us_{name}.so.1")
            register = getattr(library, f"register_cmu_us_{name}")
            register.restype = ctypes.POINTER(_Voice)
            self._loaded[name] = register(None).contents
        return self._loaded[name]


def _declare(flite: ctypes.CDLL) -> ctypes.CDLL:
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    signatures = {
        "flite_feat_set_float": ([pointer, text, ctypes.c_float], None),
        "flite_synth_text": ([text, ctypes.POINTER(_Voice)], pointer),
        "utt_wave": ([pointer], ctypes.POINTER(_Wave)),
        "utt_relation": ([pointer, text], pointer),
        "relation_head": ([pointer], pointer),
        "item_next": ([pointer], pointer),
        "ffeature_float": ([pointer, text], ctypes.c_float),
        "delete_utterance": ([pointer], None),
    }
    for name, (arguments, result) in signatures.items():
        function = getattr(flite, name)
        function.argtypes, function.restype = arguments, result
    return flite


def _library_folder(package: RegistryPackage) -> Path:
    folders = sorted((fetch_package(package) / "usr/lib").glob("*-linux-gnu"))
    if not folders:
        raise PackageError(f"{package.label}: holds no shared libraries for Linux")
    return folders[0]


def _load(path: Path) -> ctypes.CDLL:
    """Load for all: flite's libraries find each other's symbols in the global table."""
    try:
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise PackageError(f"{path.name}: cannot be loaded on this machine: {error}") from error
