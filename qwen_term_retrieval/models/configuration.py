"""What a `TermRetrievalModel` is made of; everything needed to build it again is in its `config.json`."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

POOLINGS = ("pyramid", "mean", "attention")
TEXT_POOLINGS = ("auto", "cls", "mean", "last", "pyramid")


class TermRetrievalConfig(PreTrainedConfig):
    r"""Configuration of a speech-to-term retriever.

    Args:
        audio_tower: Hub id, local folder, or the encoder's config as a dict (random weights).
        audio_tower_type: a key of `AUDIO_TOWERS`, or "auto" for the checkpoint's own `model_type`.
        audio_layers: how many of the last encoder layers are mixed, by a learned softmax.
        text_tower: "phonemes:<phonemizer>" for a phoneme encoder (see `get_phonemizer`), the Hub id or local folder
            of a text encoder, or one of each joined by " + " for the sum of sound and meaning. Of Qwen2-Audio's
            checkpoint its language model is taken.
        text_tower_config: settings of the text tower where they differ from its defaults: those of
            `PhonemeEncoderConfig`, `{"pooling": …}` of a text encoder, or of a sum
            `{"sound": {…}, "meaning": {…}, "hidden_size": …}`.
        text_pooling: how a text encoder's tokens become one vector, where `text_tower_config` does not say: "cls",
            "mean", "last", "pyramid", or "auto" for what the checkpoint was trained with.
        embedding_dim: size of the shared space.
        pooling: "pyramid" for means over a span's segments, "mean" for the one over all of it (a pyramid of the
            segments (1,)), "attention" for means weighted by learned scores.
        segments: levels of the pyramid that a span of audio is pooled with.
        windows: None for one vector a clip, or `{"sizes": (…), "stride": …}` in encoder frames.
        temperature: where `logit_scale` starts: 1 / temperature.
        logit_bias: where the bias of the sigmoid loss starts; None: the model has none.
        threshold: the cosine from which a term counts as heard; None until `calibrate` has chosen one.
        threshold_terms: how many terms were searched when it was chosen.
        phoneme_head: None, or the settings of `PhonemeHeadConfig`; `TermRetrievalModel.add_phoneme_head` makes one.
        verifier: None, or how scores become probabilities, see `Verifier`; `fit_verifier` finds out.
        lora: None, or fields of `peft.LoraConfig` (`r`, `lora_alpha`, `lora_dropout`) for the audio tower.
        text_lora: the same for the pretrained encoder of the text tower.

    The rest is filled in by the model and makes a saved model self-contained: the towers' configs, the digests of
    the base weights it was trained with, and whether the checkpoint holds a tower's weights itself.

    Example:
        >>> config = TermRetrievalConfig(audio_tower="openai/whisper-tiny.en", windows={"sizes": (25, 50), "stride": 5})
        >>> config.segments
        (1, 2, 4)
    """

    model_type = "term_retrieval"

    audio_tower: str | dict[str, Any] = "openai/whisper-base"
    audio_tower_type: str = "auto"
    audio_layers: int = 1
    text_tower: str = "phonemes:espeak:en-us"
    text_tower_config: dict[str, Any] | None = None
    text_pooling: str = "auto"
    embedding_dim: int = 384
    pooling: str = "pyramid"
    segments: tuple[int, ...] | list[int] = (1, 2, 4)
    windows: dict[str, Any] | None = None
    temperature: float = 0.07
    logit_bias: float | None = None
    lora: dict[str, Any] | None = None
    text_lora: dict[str, Any] | None = None
    threshold: float | None = None
    threshold_terms: int | None = None
    phoneme_head: dict[str, Any] | None = None
    verifier: dict[str, Any] | None = None

    audio_tower_config: dict[str, Any] | None = None
    audio_tower_sha256: str | None = None
    audio_tower_saved: bool = False
    text_tower_sha256: str | None = None
    text_tower_saved: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.segments = _positive_ints("segments", self.segments)
        if self.windows is not None:
            self.windows = _checked_windows(self.windows)
        for name in ("audio_layers", "embedding_dim"):
            _positive_ints(name, (getattr(self, name),))
        if self.text_pooling not in TEXT_POOLINGS:
            raise ValueError(f"text_pooling must be one of {', '.join(TEXT_POOLINGS)}, not {self.text_pooling!r}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {self.pooling!r}")
        if self.pooling == "mean":
            self.segments = (1,)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature!r}")
        super().__post_init__(**kwargs)


def _positive_ints(name: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or not values or not all(isinstance(v, int) and v > 0 for v in values):
        raise ValueError(f"{name} must be whole numbers above 0, not {values!r}")
    return tuple(values)


def _checked_windows(windows: dict[str, Any]) -> dict[str, Any]:
    if set(windows) != {"sizes", "stride"}:
        raise ValueError(f"windows takes exactly the keys 'sizes' and 'stride', in encoder frames, not {windows!r}")
    sizes = _positive_ints("windows['sizes']", windows["sizes"])
    (stride,) = _positive_ints("windows['stride']", (windows["stride"],))
    # Lists, so that a config read from JSON equals the one that was written.
    return {"sizes": list(sizes), "stride": stride}


AutoConfig.register("term_retrieval", TermRetrievalConfig)
