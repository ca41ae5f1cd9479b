"""Text towers: terms to pooled vectors, by how they sound, by what they mean, or by both.

A tower tokenizes on the CPU (`tokenize(texts, languages) -> inputs`, in the collator) and encodes on the device
(`tower(**inputs) -> h_NH`). `build_text_tower` picks it from `TermRetrievalConfig.text_tower`.

Shapes: N terms, H hidden.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from qwen_term_retrieval.models.configuration import TermRetrievalConfig
from qwen_term_retrieval.models.text_towers.phoneme_encoder import PhonemeEncoder
from qwen_term_retrieval.models.text_towers.sound_and_meaning import SoundAndMeaning
from qwen_term_retrieval.models.text_towers.text_encoder import HFTextEncoder
from qwen_term_retrieval.text.pronouncing import Pronouncer

_PHONEMES = "phonemes:"
_SUM = " + "

TextTower = PhonemeEncoder | HFTextEncoder | SoundAndMeaning


def build_text_tower(
    name: str, settings: dict[str, Any] | None, *, pooling: str = "auto", attn_implementation: str | None = None
) -> TextTower:
    """The text tower called `name`, without a checkpoint's weights.

    Args:
        name: "phonemes:<phonemizer>", a Hub id or local folder, or one of each, joined by " + ".
        settings: see `TermRetrievalConfig.text_tower_config`.
        pooling: of a pretrained encoder, where its settings do not say.
        attn_implementation: of a pretrained encoder.

    Raises:
        ValueError: the name or the settings make no tower.
    """
    settings = dict(settings or {})
    if _SUM in name:
        return _build_sum(name, settings, pooling, attn_implementation)
    if name.startswith(_PHONEMES):
        return PhonemeEncoder({**settings, "phonemizer": name.removeprefix(_PHONEMES)})
    return HFTextEncoder(name, _with_pooling(settings, pooling), attn_implementation)


def _build_sum(name: str, settings: dict[str, Any], pooling: str, attn_implementation: str | None) -> SoundAndMeaning:
    parts = sorted((part.strip() for part in name.split(_SUM)), key=lambda part: not part.startswith(_PHONEMES))
    if len(parts) != 2 or [part.startswith(_PHONEMES) for part in parts] != [True, False]:
        raise ValueError(
            f"text tower {name!r}: a sum is one phoneme encoder and one pretrained encoder, such as "
            f"'phonemes:espeak:en-us + sentence-transformers/all-MiniLM-L6-v2'"
        )
    unknown = set(settings) - {"sound", "meaning", "hidden_size"}
    if unknown:
        raise ValueError(
            f"text_tower_config: unknown keys {sorted(unknown)}; a sum takes 'sound', 'meaning' and 'hidden_size'"
        )
    sound = PhonemeEncoder({**settings.pop("sound", {}), "phonemizer": parts[0].removeprefix(_PHONEMES)})
    meaning = HFTextEncoder(parts[1], _with_pooling(settings.pop("meaning", {}), pooling), attn_implementation)
    return SoundAndMeaning(sound, meaning, **settings)


def _with_pooling(settings: dict[str, Any], pooling: str) -> dict[str, Any]:
    said = settings.get("pooling", "auto")
    if "auto" not in (said, pooling) and said != pooling:
        raise ValueError(f"text_pooling is {pooling!r}, but text_tower_config says {said!r}: leave one of them out")
    return {**settings, "pooling": pooling if said == "auto" else said}


def pronouncer_of(tower: nn.Module) -> Pronouncer | None:
    """What says the terms of a tower with phonemizers of several languages; None where it reads all languages alike."""
    encoders = (module for module in tower.modules() if isinstance(module, PhonemeEncoder))
    return next((encoder.pronouncer for encoder in encoders if encoder.config.languages), None)


def speaker_of(tower: nn.Module) -> Pronouncer | None:
    """What says the terms of a tower, in whichever language; None where it has no phoneme encoder."""
    return next((module.pronouncer for module in tower.modules() if isinstance(module, PhonemeEncoder)), None)


def pronouncer_of_config(config: TermRetrievalConfig) -> Pronouncer:
    """What says terms for a model, without building it: its phoneme head's phonemizers, else its text tower's.

    Raises:
        ValueError: it has none, and reads terms as they are written.
    """
    if config.phoneme_head is not None:
        return Pronouncer(config.phoneme_head["phonemizer"], config.phoneme_head.get("languages"), several=True)
    names = [part.strip() for part in config.text_tower.split(_SUM) if part.strip().startswith(_PHONEMES)]
    if not names:
        raise ValueError(f"the text tower {config.text_tower!r} reads terms as they are written; it says none")
    settings = config.text_tower_config or {}
    languages = settings.get("sound", settings).get("languages")
    return Pronouncer(names[0].removeprefix(_PHONEMES), languages, several=True)


def phonemizers_of(tower: nn.Module) -> dict[str, Any]:
    """`phonemizer` and `languages` of the tower's phoneme encoder; none where it has none."""
    for module in tower.modules():
        if isinstance(module, PhonemeEncoder):
            return {"phonemizer": module.config.phonemizer, "languages": dict(module.config.languages)}
    return {}


def pretrained_text_encoder(tower: nn.Module) -> tuple[str, HFTextEncoder] | None:
    """The pretrained encoder in a text tower, and its place in it ("" for the tower itself); None if there is none."""
    return next(((name, module) for name, module in tower.named_modules() if isinstance(module, HFTextEncoder)), None)
