"""The settings of augmentation: what `augmentation:` in a recipe may say.

    augmentation:
      noise: packs/noise
      noise_snr_db: [0, 20]
      reverb_prob: 0.5

The defaults of noise are those of NeMo's NEST; the others are mild, and every one of them can be set to 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from qwen_term_retrieval.did_you_mean import did_you_mean

Range = tuple[float, float]
# A room that reverberates for less has no reflections after its direct sound.
SHORTEST_RT60_SECONDS = 0.02


@dataclass(frozen=True)
class AugmentationConfig:
    """What may happen to a training clip, how often, and how badly. Ranges are uniform.

    Raises:
        ValueError: a probability outside [0, 1], or a range that is none; the message names the setting.
    """

    noise: str | None = None
    """Recordings of noise: a pack, a folder of audio, or a dataset on the Hub. None: babble of training clips."""
    noise_prob: float = 0.5
    """Share of clips that something is added to."""
    speech_share: float = 0.5
    """Share, of the clips that something is added to, that get another training clip: somebody else talking."""
    noise_snr_db: Range = (-5.0, 20.0)
    """Signal-to-noise ratio: mean power over mean power, where the noise sounds."""
    speech_snr_db: Range = (-5.0, 5.0)
    """The same for somebody else talking."""
    babble_voices: tuple[int, int] = (4, 8)
    """How many training clips are one babble."""
    noise_span: Range = (1.0, 1.0)
    """Share of the clip in which what is added sounds."""
    noise_segments: tuple[int, int] = (1, 1)
    """Into how many pieces that share is cut, which lie anywhere in the clip."""
    talkers: tuple[int, int] = (1, 1)
    """How many other clips take turns, piece by piece, where somebody else is talking."""
    silence_dbfs: float = -60.0
    """A crop of noise with less RMS than this, full scale being 0 dB, is silent, and another is tried."""
    impulse_responses: str | None = None
    """Recorded impulse responses, as `noise`. None: synthetic rooms."""
    reverb_prob: float = 0.3
    """Share of clips played in a room."""
    rt60_seconds: Range = (0.15, 0.8)
    """Reverberation time of synthetic rooms."""
    direct_to_reverberant_db: Range = (0.0, 15.0)
    """How near the speaker of a synthetic room stands."""
    speed_prob: float = 0.3
    """Share of clips played faster or slower, which raises or lowers the voice too."""
    speed: Range = (0.9, 1.1)
    """1.1: a tenth faster. The spans of terms are moved with the sound."""
    silence_prob: float = 0.5
    """Share of clips with silence before and behind what is said, as recordings have it and synthetic clips do not."""
    silence_seconds: Range = (0.0, 0.4)
    """How much of it, on either side. The spans of terms are moved with the sound."""
    hiss_dbfs: Range = (-75.0, -50.0)
    """White noise under such a clip: no recording is silent. RMS, full scale being 0 dB."""
    band_prob: float = 0.1
    """Share of clips that lose the lowest and highest frequencies; a telephone has a band of its own."""
    band_low_hz: Range = (50.0, 400.0)
    """Lower edge of the band."""
    band_high_hz: Range = (2500.0, 7500.0)
    """Upper edge of the band."""
    telephone_prob: float = 0.1
    """Share of clips sent through a telephone: 300-3400 Hz at 8 kHz, in 8 bits of mu-law."""
    gain_prob: float = 0.5
    """Share of clips made louder or softer."""
    gain_db: Range = (-15.0, 5.0)
    """By how much."""
    augmented_copies: int = 3
    """Under a frozen tower, whose frames are computed once: how many distorted copies of each clip there are.
    A visit takes one of them, or the clip itself. A tower in training hears every visit distorted anew."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith(("_prob", "_share")):
                if not isinstance(value, int | float) or not 0 <= value <= 1:
                    raise ValueError(f"augmentation: {field.name} must lie in [0, 1], not {value}")
            elif isinstance(field.default, tuple):
                if not _is_range(value):
                    raise ValueError(f"augmentation: {field.name} must be [lowest, highest], not {value}")
                object.__setattr__(self, field.name, tuple(value))
        if self.rt60_seconds[0] < SHORTEST_RT60_SECONDS:
            raise ValueError(
                f"augmentation: rt60_seconds must be at least {SHORTEST_RT60_SECONDS}, not {list(self.rt60_seconds)}"
            )
        if self.silence_seconds[0] < 0:
            raise ValueError(f"augmentation: silence_seconds must not be negative, not {list(self.silence_seconds)}")
        for name in ("speed", "babble_voices", "noise_span", "noise_segments", "talkers"):
            if getattr(self, name)[0] <= 0:
                raise ValueError(f"augmentation: {name} must be positive, not {list(getattr(self, name))}")
        if self.noise_span[1] > 1:
            raise ValueError(f"augmentation: noise_span must lie in (0, 1], not {list(self.noise_span)}")
        if not 0 <= self.band_low_hz[0] <= self.band_low_hz[1] < self.band_high_hz[0] <= self.band_high_hz[1] <= 8000:
            raise ValueError("augmentation: band_low_hz must lie below band_high_hz, and both within [0, 8000]")
        if self.augmented_copies < 0:
            raise ValueError(f"augmentation: augmented_copies must not be negative, not {self.augmented_copies}")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> AugmentationConfig:
        """Make the config that the settings of a recipe say.

        Raises:
            ValueError: one of them does not exist; names the nearest that does.
        """
        names = [field.name for field in fields(cls)]
        for name in settings:
            if name not in names:
                raise ValueError(f"augmentation: {name!r} is no setting{did_you_mean(name, names)}")
        return cls(**settings)


def _is_range(value: Any) -> bool:
    if not isinstance(value, Sequence) or len(value) != 2 or not all(isinstance(edge, int | float) for edge in value):
        return False
    return value[0] <= value[1]
