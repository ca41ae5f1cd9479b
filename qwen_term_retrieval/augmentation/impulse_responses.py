"""Impulse responses at 16 kHz: of rooms, made or measured, and of band-limited channels.

All of them start at the direct sound or are centred on it, so that convolving with one moves no sound in time, and
the spans of terms stay where they are.
"""

from __future__ import annotations

import functools

import numpy as np

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE

FILTER_TAPS = 513
_DIRECT_SECONDS = 0.0025
_EARLY_SECONDS = 0.05
_LONGEST_SECONDS = 1.5


def synthetic_impulse_response(
    rt60_seconds: float, direct_to_reverberant_db: float, generator: np.random.Generator
) -> np.ndarray:
    """A room nobody has been in: the direct sound, some early reflections, and noise that decays (Polack 1988).

    Args:
        rt60_seconds: time in which the reverberation falls by 60 dB.
        direct_to_reverberant_db: energy of the first 2.5 ms over the energy of what follows.

    Returns:
        float32 (num_samples,), 1 at the direct sound, which comes first.

    >>> room = synthetic_impulse_response(0.4, 6.0, np.random.default_rng(0))
    >>> len(room), float(room[0]), round(float(10 * np.log10(1 / (room[1:] ** 2).sum())), 2)
    (6400, 1.0, 6.0)
    """
    seconds = np.arange(round(rt60_seconds * SAMPLING_RATE)) / SAMPLING_RATE
    decay = 10 ** (-3 * seconds / rt60_seconds)
    response = decay * generator.standard_normal(len(seconds))
    # A few mirror images of the source stand out of the diffuse field: the nearest walls, floor, and ceiling.
    first = round(_DIRECT_SECONDS * SAMPLING_RATE)
    last = min(round(_EARLY_SECONDS * SAMPLING_RATE), len(seconds))
    early = generator.integers(first, last, size=generator.integers(4, 12))
    response[early] += decay[early] * generator.choice([-1.0, 1.0], len(early)) * generator.uniform(1, 4, len(early))
    response[:first] = 0
    response *= 10 ** (-direct_to_reverberant_db / 20) / np.sqrt(np.square(response).sum())
    response[0] = 1.0
    return response.astype(np.float32)


def measured_impulse_response(pcm: np.ndarray) -> np.ndarray:
    """A recorded response, float32, cut to start at its direct sound (its peak) and to last at most 1.5 s.

    Raises:
        ValueError: the recording is silent.
    """
    peak = int(np.argmax(np.abs(pcm.astype(np.int32))))
    if pcm[peak] == 0:
        raise ValueError("holds no sound, so it is no impulse response; take it out of the folder")
    response = pcm[peak : peak + round(_LONGEST_SECONDS * SAMPLING_RATE)].astype(np.float32)
    return response / response[0]


@functools.lru_cache(maxsize=64)
def band_filter(low_hz: float, high_hz: float) -> np.ndarray:
    """Linear-phase filter that passes `low_hz` to `high_hz`: float32 (513,), centred on tap 256.

    A windowed sinc (Hamming): 53 dB down within some 100 Hz of each edge, 6 dB down at it.
    """
    tap = np.arange(FILTER_TAPS) - FILTER_TAPS // 2
    # Edges as shares of the highest frequency there is.
    low, high = 2 * low_hz / SAMPLING_RATE, 2 * high_hz / SAMPLING_RATE
    response = high * np.sinc(high * tap) - low * np.sinc(low * tap)
    return (response * np.hamming(FILTER_TAPS)).astype(np.float32)
