"""Augmentation of speech: what will be done to one visit of one clip, decided by numbers and not by chance.

A `DistortionPlanner` turns the `draw` of a visit of a clip into a `Distortion`: a few numbers that say at
what speed the clip is played, how long it is silent before and behind, in which room, with which noise at what
signal-to-noise ratio, through which channel and how loud. The same draw gives the same distortion in any batch, worker
or rank. `render` then fetches the sounds it names; `distortion.py` applies them to a batch, on the CPU or the device.

They are applied in the order in which sound gets distorted: speed and silence, then the room, then noise (at its ratio
to the reverberant clip), then band or telephone, then gain. What would clip is scaled down.

The ratios and the rules of retrying are those of NeMo's NEST (Huang et al. 2024), less its faults: whether a crop is
silent is judged by its energy, and white noise is the last resort, counted and reported.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import soxr

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE
from qwen_term_retrieval.augmentation.config import AugmentationConfig, Range
from qwen_term_retrieval.augmentation.impulse_responses import (
    band_filter,
    measured_impulse_response,
    synthetic_impulse_response,
)
from qwen_term_retrieval.packs.clip_reader import ClipReader

logger = logging.getLogger(__name__)

TELEPHONE_HZ = (300.0, 3400.0)
WHITE_NOISE_DBFS = (-90.0, -46.0)
RECORDING_TRIES = 20
CROP_TRIES = 100
_FULL_SCALE = 32768.0
_BABBLE_DBFS = -26.0
# Sets the random numbers of augmentation apart from those that the collator derives from the same draw.
_STREAM = 2

SoundKind = Literal["noise", "speech", "babble", "white"]


@dataclass(frozen=True)
class AddedSound:
    """What is added to a clip: crops, as (recording, first sample), of noise, of other clips, or of several (babble).

    `parts` of the clip, as (first sample, samples), are those in which it sounds; none: all over it. Clips of speech
    take turns in them. White noise has no crops and no ratio to the clip, but a level of its own, `dbfs`, and a seed.
    """

    kind: SoundKind
    crops: tuple[tuple[int, int], ...] = ()
    snr_db: float = 0.0
    dbfs: float = 0.0
    seed: int = 0
    parts: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Room:
    """An impulse response: a recorded one, by its number, or a synthetic one."""

    recording: int | None = None
    rt60_seconds: float = 0.0
    direct_to_reverberant_db: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Silence:
    """What lies before and behind the sound of a clip, in samples, and the hiss under all of it."""

    before: int
    behind: int
    hiss: AddedSound


@dataclass(frozen=True)
class Distortion:
    """Everything that is done to one visit of one clip; as it stands here: nothing."""

    speed: float = 1.0
    silence: Silence | None = None
    room: Room | None = None
    added: AddedSound | None = None
    band_hz: Range | None = None
    telephone: bool = False
    gain_db: float = 0.0

    def num_samples(self, before: int) -> int:
        """Length of a clip after the change of speed, with its silence."""
        sound = before if self.speed == 1.0 else max(1, round(before / self.speed))
        return sound if self.silence is None else self.silence.before + sound + self.silence.behind

    def moved(self, second: float) -> float:
        """Where a second of the clip as it was recorded lies in it now."""
        return second / self.speed + (0 if self.silence is None else self.silence.before / SAMPLING_RATE)


class Ingredients(NamedTuple):
    """A clip at its new speed and with its silence, and the sounds and filters still to be applied to it."""

    pcm: np.ndarray
    added: np.ndarray | None = None
    snr_db: float | None = None
    impulse_response: np.ndarray | None = None
    band_filter: np.ndarray | None = None
    telephone: bool = False
    gain_db: float = 0.0
    parts: tuple[tuple[int, int], ...] = ()

    @property
    def is_changed(self) -> bool:
        """Whether anything is still to be applied."""
        sounds = (self.added, self.impulse_response, self.band_filter)
        return any(sound is not None for sound in sounds) or self.telephone or self.gain_db != 0


class DistortionPlanner:
    """Decides on distortions and fetches what they need.

    Args:
        config: what may happen.
        speech: the clips that are augmented; competing speech and babble are drawn from them. A clip of the same
            batch would do too, but then what is heard would depend on the batch, and with it on the number of ranks.
        noise: recordings of noise; None: babble of `speech`.
        impulse_responses: recorded ones; None: synthetic ones.
        max_samples: what the audio tower takes; no clip is slowed down beyond it.
        speakers: of each clip of `speech`, any number; where there are several, somebody else talking is another one.

    Raises:
        ValueError: noise is asked for and there is nothing to make it of.

    >>> planner = DistortionPlanner(AugmentationConfig(), ClipReader(rows))              # doctest: +SKIP
    >>> distortion = planner.draw(7, clip=0, num_samples=16_000)                         # doctest: +SKIP
    """

    def __init__(
        self,
        config: AugmentationConfig,
        speech: ClipReader,
        *,
        noise: ClipReader | None = None,
        impulse_responses: ClipReader | None = None,
        max_samples: int | None = None,
        speakers: np.ndarray | None = None,
    ) -> None:
        self.config = config
        self.speakers = speakers if speakers is not None and len(np.unique(speakers)) > 1 else None
        self.speech = speech
        self.noise = noise
        self.impulse_responses = impulse_responses
        self.max_samples = max_samples
        self.num_white_noise = 0
        if config.noise_prob and len(speech.num_samples) < 2 and (noise is None or config.speech_share):
            raise ValueError("augmentation: noise of training clips needs two of them; set `noise`, and speech_share 0")

    def draw(self, draw: int, clip: int, num_samples: int) -> Distortion:
        """The distortion of one visit.

        Args:
            draw: of the visit.
            clip: its number in `speech`: it is never added to itself.
            num_samples: its length.
        """
        config = self.config
        generator = np.random.default_rng((draw, _STREAM))
        slowed, silent, room, noised, telephone, band, gain = generator.random(7).tolist()
        speed = 1.0
        if slowed < config.speed_prob:
            speed = generator.uniform(*config.speed)
            if self.max_samples is not None:
                speed = max(speed, num_samples / self.max_samples)
        distortion = Distortion(
            speed=speed,
            silence=self._draw_silence(generator, num_samples / speed) if silent < config.silence_prob else None,
            room=self._draw_room(generator) if room < config.reverb_prob else None,
            telephone=telephone < config.telephone_prob,
            band_hz=(
                (generator.uniform(*config.band_low_hz), generator.uniform(*config.band_high_hz))
                if band < config.band_prob
                else None
            ),
            gain_db=generator.uniform(*config.gain_db) if gain < config.gain_prob else 0.0,
        )
        if noised >= config.noise_prob:
            return distortion
        added = self._draw_sound(generator, clip, distortion.num_samples(num_samples))
        return replace(distortion, added=added)

    def render(self, pcm: np.ndarray, distortion: Distortion) -> Ingredients:
        """Change the speed of a clip, put silence around it and fetch the sounds of its distortion.

        Args:
            pcm: int16 (num_samples,), 16 kHz.

        Returns:
            int16 arrays (`distortion.num_samples`,), float32 filters. With nothing to do, `pcm` itself.
        """
        if distortion.speed != 1.0:
            pcm = change_speed(pcm, distortion.speed)
        if distortion.silence is not None:
            pcm = self._with_silence(pcm, distortion.silence)
        band_hz = TELEPHONE_HZ if distortion.telephone else distortion.band_hz
        added = distortion.added
        return Ingredients(
            pcm,
            added=None if added is None else self._sound(added, len(pcm)),
            snr_db=None if added is None or added.kind == "white" else added.snr_db,
            impulse_response=None if distortion.room is None else self._impulse_response(distortion.room),
            band_filter=None if band_hz is None else band_filter(*band_hz),
            telephone=distortion.telephone,
            gain_db=distortion.gain_db,
            parts=() if added is None else added.parts,
        )

    def _draw_silence(self, generator: np.random.Generator, num_samples: float) -> Silence:
        config = self.config
        before, behind = (round(generator.uniform(*config.silence_seconds) * SAMPLING_RATE) for _ in range(2))
        if self.max_samples is not None:
            before = max(0, min(before, self.max_samples - math.ceil(num_samples)))
            behind = max(0, min(behind, self.max_samples - math.ceil(num_samples) - before))
        level, seed = generator.uniform(*config.hiss_dbfs), int(generator.integers(1 << 62))
        return Silence(before, behind, AddedSound("white", dbfs=level, seed=seed))

    def _with_silence(self, pcm: np.ndarray, silence: Silence) -> np.ndarray:
        heard = self._sound(silence.hiss, silence.before + len(pcm) + silence.behind)
        sound = heard[silence.before : silence.before + len(pcm)]
        np.clip(sound + pcm.astype(np.int32), -32768, 32767, out=sound, casting="unsafe")
        return heard

    def _draw_room(self, generator: np.random.Generator) -> Room:
        if self.impulse_responses is not None:
            return Room(recording=int(generator.integers(len(self.impulse_responses.num_samples))))
        config = self.config
        return Room(
            rt60_seconds=generator.uniform(*config.rt60_seconds),
            direct_to_reverberant_db=generator.uniform(*config.direct_to_reverberant_db),
            seed=int(generator.integers(1 << 62)),
        )

    def _impulse_response(self, room: Room) -> np.ndarray:
        if room.recording is None or self.impulse_responses is None:
            generator = np.random.default_rng(room.seed)
            return synthetic_impulse_response(room.rt60_seconds, room.direct_to_reverberant_db, generator)
        (pcm,) = self.impulse_responses.views([room.recording])
        try:
            return measured_impulse_response(pcm)
        except ValueError as error:
            where = f"recording {room.recording} of {self.config.impulse_responses}"
            raise ValueError(f"augmentation: impulse_responses: {where}: {error}") from error

    def _draw_sound(self, generator: np.random.Generator, clip: int, num_samples: int) -> AddedSound:
        config = self.config
        parts = self._draw_parts(generator, num_samples)
        sounding = sum(length for _, length in parts) if parts else num_samples
        kind: SoundKind
        if generator.random() < config.speech_share:
            kind, snr_db = "speech", generator.uniform(*config.speech_snr_db)
            num_crops = min(_whole_number(generator, config.talkers), max(1, len(parts)))
        elif self.noise is not None:
            kind, num_crops, snr_db = "noise", 1, generator.uniform(*config.noise_snr_db)
        else:
            low, high = config.babble_voices
            kind, num_crops = "babble", int(generator.integers(low, high + 1))
            snr_db = generator.uniform(*config.noise_snr_db)
        crops = [self._find_crop(generator, kind, clip, sounding) for _ in range(num_crops)]
        found = tuple(crop for crop in crops if crop is not None)
        if found:
            return AddedSound(kind, found, snr_db, parts=parts)
        self._report_white_noise(kind)
        level, seed = generator.uniform(*WHITE_NOISE_DBFS), int(generator.integers(1 << 62))
        return AddedSound("white", dbfs=level, seed=seed, parts=parts)

    def _draw_parts(self, generator: np.random.Generator, num_samples: int) -> tuple[tuple[int, int], ...]:
        """Pieces of a clip, as (first sample, samples), in which something sounds: of any lengths, at any places."""
        config = self.config
        if config.noise_span == (1.0, 1.0) and config.noise_segments == (1, 1):
            return ()  # and nothing is drawn: visits sound as they did before there were parts
        sounding = max(1, round(generator.uniform(*config.noise_span) * num_samples))
        number = min(_whole_number(generator, config.noise_segments), sounding)
        cuts = np.sort(generator.choice(sounding - 1, number - 1, replace=False)) + 1 if number > 1 else np.zeros(0)
        edges = np.concatenate([[0], cuts, [sounding]]).astype(np.int64)
        silent = np.sort(generator.integers(num_samples - sounding + 1, size=number))
        return tuple(zip((edges[:-1] + silent).tolist(), np.diff(edges).tolist(), strict=True))

    def _find_crop(
        self, generator: np.random.Generator, kind: SoundKind, clip: int, num_samples: int
    ) -> tuple[int, int] | None:
        """(recording, first sample) of a crop that is not silent; None after 20 recordings of 100 crops each."""
        recordings = self._recordings(kind)
        lengths = recordings.num_samples
        for _ in range(RECORDING_TRIES):
            recording = int(generator.integers(len(lengths)))
            length = int(lengths[recording])
            if length == 0 or (recording == clip and kind != "noise"):
                continue
            if kind == "speech" and self.speakers is not None and self.speakers[recording] == self.speakers[clip]:
                continue
            (view,) = recordings.views([recording])
            # A short one is repeated to fill the clip: every crop of it has the same energy.
            for _ in range(CROP_TRIES if length > num_samples else 1):
                start = int(generator.integers(length - num_samples + 1 if length > num_samples else length))
                if dbfs(_crop(view, start, num_samples)) > self.config.silence_dbfs:
                    return recording, start
        return None

    def _recordings(self, kind: SoundKind) -> ClipReader:
        return self.noise if kind == "noise" and self.noise is not None else self.speech

    def _sound(self, added: AddedSound, num_samples: int) -> np.ndarray:
        if not added.parts:
            return self._sounds(added, num_samples)[0]
        sounds = self._sounds(added, sum(length for _, length in added.parts))
        heard, begin = np.zeros(num_samples, np.int16), 0
        for number, (first, length) in enumerate(added.parts):
            heard[first : first + length] = sounds[number % len(sounds)][begin : begin + length]
            begin += length
        return heard

    def _sounds(self, added: AddedSound, num_samples: int) -> list[np.ndarray]:
        """What takes turns: of speech, each clip; else one sound."""
        if added.kind == "white":
            noise = np.random.default_rng(added.seed).standard_normal(num_samples, np.float32)
            return [np.rint(noise * _FULL_SCALE * 10 ** (added.dbfs / 20)).astype(np.int16)]
        views = self._recordings(added.kind).views([recording for recording, _ in added.crops])
        crops = [_crop(view, start, num_samples) for view, (_, start) in zip(views, added.crops, strict=True)]
        return crops if added.kind != "babble" else [_babble(crops)]

    def _report_white_noise(self, kind: SoundKind) -> None:
        self.num_white_noise += 1
        if self.num_white_noise == 1:
            logger.warning(
                "augmentation: a clip gets white noise, because %d recordings of %s gave no crop above %g dBFS. Look "
                "at what is in there, or lower silence_dbfs. (Said once; `num_white_noise` counts on.)",
                RECORDING_TRIES,
                self.config.noise if kind == "noise" and self.config.noise else kind,
                self.config.silence_dbfs,
            )


def _whole_number(generator: np.random.Generator, between: tuple[int, int]) -> int:
    low, high = between
    return low if low == high else int(generator.integers(low, high + 1))


def change_speed(pcm: np.ndarray, speed: float) -> np.ndarray:
    """Play int16 samples faster (speed > 1) or slower: `round(num_samples / speed)` samples."""
    wanted = Distortion(speed=speed).num_samples(len(pcm))
    resampled = soxr.resample(pcm, SAMPLING_RATE * speed, SAMPLING_RATE, quality="HQ")[:wanted]
    return np.pad(resampled, (0, wanted - len(resampled)))


def dbfs(pcm: np.ndarray) -> float:
    """RMS of int16 samples in decibels below full scale; minus infinity for digital silence."""
    energy = int(np.square(pcm, dtype=np.int64).sum())
    return 10 * float(np.log10(energy / len(pcm) / _FULL_SCALE**2)) if energy else -np.inf


def _crop(pcm: np.ndarray, start: int, num_samples: int) -> np.ndarray:
    """A window of a recording, going on at its beginning where it ends."""
    if start + num_samples <= len(pcm):
        return pcm[start : start + num_samples]
    return pcm.take(np.arange(start, start + num_samples), mode="wrap")


def _babble(crops: Sequence[np.ndarray]) -> np.ndarray:
    """Voices, equally loud, at once."""
    voices = sum(crop * 10 ** ((_BABBLE_DBFS - dbfs(crop)) / 20) for crop in crops) / np.sqrt(len(crops))
    return np.clip(np.rint(voices), -32768, 32767).astype(np.int16)
