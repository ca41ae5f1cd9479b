"""What may happen to a clip: decided by its number alone, within the ranges asked for, and never by accident."""

import doctest
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.augmentation import impulse_responses
from qwen_term_retrieval.augmentation.config import AugmentationConfig
from qwen_term_retrieval.augmentation.impulse_responses import (
    band_filter,
    measured_impulse_response,
    synthetic_impulse_response,
)
from qwen_term_retrieval.augmentation.planning import (
    RECORDING_TRIES,
    AddedSound,
    Distortion,
    DistortionPlanner,
    Room,
    change_speed,
    dbfs,
)

pytestmark = pytest.mark.usefixtures("hf_home")

RATE = 16_000
NOTHING = {
    "noise_prob": 0.0,
    "reverb_prob": 0.0,
    "speed_prob": 0.0,
    "silence_prob": 0.0,
    "band_prob": 0.0,
    "telephone_prob": 0.0,
    "gain_prob": 0.0,
}


def hum(num_samples, level=3000, seed=0):
    return (np.random.default_rng(seed).standard_normal(num_samples) * level).astype(np.int16)


class ArrayRecordings:
    """Recordings in memory, as a `ClipReader` gives them."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.num_samples = np.array([len(array) for array in arrays])

    def views(self, indices):
        return [self.arrays[index] for index in indices]


def planner(noises=None, speech=None, **settings):
    return DistortionPlanner(
        AugmentationConfig(**{**NOTHING, **settings}),
        ArrayRecordings(speech or [hum(RATE, seed=seed) for seed in range(5)]),
        noise=None if noises is None else ArrayRecordings(noises),
    )


@given(draw=st.integers(0, 2**62 - 1), clip=st.integers(0, 4), num_samples=st.integers(1, 3 * RATE))
@settings(max_examples=50, deadline=None)
def test_a_distortion_is_a_function_of_the_draw_and_lies_in_its_ranges(draw, clip, num_samples):
    config = AugmentationConfig(noise_prob=0.8, reverb_prob=0.5, speed_prob=0.5, band_prob=0.5, telephone_prob=0.5)
    speech = ArrayRecordings([hum(RATE, seed=seed) for seed in range(5)])
    distortion = DistortionPlanner(config, speech).draw(draw, clip, num_samples)
    assert distortion == DistortionPlanner(config, speech).draw(draw, clip, num_samples)
    assert 0.9 <= distortion.speed <= 1.1
    if distortion.added is not None:
        assert all(recording != clip for recording, _ in distortion.added.crops)
        low, high = config.speech_snr_db if distortion.added.kind == "speech" else config.noise_snr_db
        assert low <= distortion.added.snr_db <= high
    if distortion.band_hz is not None:
        assert 50 <= distortion.band_hz[0] <= 400 < 2500 <= distortion.band_hz[1] <= 7500
    ingredients = DistortionPlanner(config, speech).render(hum(num_samples), distortion)
    assert len(ingredients.pcm) == distortion.num_samples(num_samples)
    assert distortion.added is None or len(ingredients.added) == len(ingredients.pcm)


def test_each_effect_happens_as_often_as_asked():
    plan = planner(noises=[hum(RATE)], noise_prob=0.5, reverb_prob=0.3, telephone_prob=0.1)
    distortions = [plan.draw(draw, clip=0, num_samples=800) for draw in range(2000)]
    kinds = [distortion.added.kind if distortion.added else None for distortion in distortions]
    assert kinds.count("noise") == pytest.approx(500, abs=80)
    assert kinds.count("speech") == pytest.approx(500, abs=80)
    assert sum(distortion.room is not None for distortion in distortions) == pytest.approx(600, abs=80)
    assert sum(distortion.telephone for distortion in distortions) == pytest.approx(200, abs=60)
    assert all(distortion.speed == 1.0 and distortion.gain_db == 0.0 for distortion in distortions)


def test_with_nothing_to_happen_a_clip_passes_as_it_is():
    pcm = hum(500)
    plan = planner()
    distortion = plan.draw(1, clip=0, num_samples=500)
    assert distortion == Distortion()
    assert plan.render(pcm, distortion).pcm is pcm


@given(draw=st.integers(0, 2**62 - 1), num_samples=st.integers(1, 2 * RATE))
@settings(max_examples=40, deadline=None)
def test_silence_lies_around_the_sound_with_hiss_under_both(draw, num_samples):
    plan = planner(silence_prob=1.0, silence_seconds=(0.1, 0.4), hiss_dbfs=(-60, -60))
    distortion = plan.draw(draw, clip=0, num_samples=num_samples)
    before, behind = distortion.silence.before, distortion.silence.behind
    assert 0.1 * RATE - 1 <= min(before, behind) <= max(before, behind) <= 0.4 * RATE + 1
    pcm = hum(num_samples)
    heard = plan.render(pcm, distortion).pcm
    assert len(heard) == distortion.num_samples(num_samples) == before + num_samples + behind
    assert dbfs(heard[:before]) == pytest.approx(-60, abs=1)
    assert dbfs(heard[before + num_samples :]) == pytest.approx(-60, abs=1)
    hiss = heard[before : before + num_samples].astype(int) - pcm
    assert np.abs(hiss).max() < 200
    assert distortion.moved(0.25) == 0.25 + before / RATE


def test_silence_never_makes_a_clip_longer_than_the_tower_takes():
    speech = ArrayRecordings([hum(RATE)] * 2)
    config = AugmentationConfig(**NOTHING | {"silence_prob": 1.0, "silence_seconds": (0.3, 0.4)})
    plan = DistortionPlanner(config, speech, max_samples=RATE + 100)
    for draw in range(20):
        assert plan.draw(draw, 0, RATE).num_samples(RATE) == RATE + 100
        assert plan.draw(draw, 0, RATE + 100).num_samples(RATE + 100) == RATE + 100


def test_a_loud_clip_with_hiss_does_not_wrap_around():
    plan = planner(silence_prob=1.0, hiss_dbfs=(-20, -20))
    loudest = np.full(500, 32767, np.int16)
    distortion = plan.draw(3, clip=0, num_samples=500)
    heard = plan.render(loudest, distortion).pcm[distortion.silence.before :][:500]
    assert heard.min() > 0


def test_changing_one_probability_leaves_which_clips_the_others_take():
    with_rooms = planner(noises=[hum(RATE)], noise_prob=0.5, reverb_prob=0.5)
    without = planner(noises=[hum(RATE)], noise_prob=0.5)
    for draw in range(50):
        noised = with_rooms.draw(draw, 0, 800).added is not None
        assert noised == (without.draw(draw, 0, 800).added is not None)


def test_a_zero_mean_crop_is_not_silent_and_a_constant_offset_of_nothing_is():
    assert dbfs(np.tile(np.array([1000, -1000], np.int16), 100)) == pytest.approx(-30.3, abs=0.1)
    assert dbfs(np.zeros(100, np.int16)) == -np.inf


def test_the_sounding_part_of_a_mostly_silent_recording_is_found():
    recording = np.zeros(20 * RATE, np.int16)
    recording[7 * RATE : 9 * RATE] = hum(2 * RATE)
    plan = planner(noises=[recording], noise_prob=1.0, speech_share=0.0)
    for draw in range(20):
        distortion = plan.draw(draw, clip=0, num_samples=RATE)
        assert distortion.added.kind == "noise"
        assert dbfs(plan.render(hum(RATE), distortion).added) > -60
    assert plan.num_white_noise == 0


def test_white_noise_is_the_last_resort_and_is_reported_once(caplog):
    plan = planner(noises=[np.zeros(RATE, np.int16)], noise_prob=1.0, speech_share=0.0)
    with caplog.at_level(logging.WARNING):
        sounds = [plan.draw(draw, clip=0, num_samples=800).added for draw in range(3)]
    assert plan.num_white_noise == 3
    assert caplog.text.count(f"a clip gets white noise, because {RECORDING_TRIES} recordings") == 1
    for sound in sounds:
        assert sound.kind == "white"
        assert -90 <= sound.dbfs <= -46
    ingredients = plan.render(hum(RATE), Distortion(added=AddedSound("white", dbfs=-50.0, seed=1)))
    assert dbfs(ingredients.added) == pytest.approx(-50, abs=0.3)
    assert ingredients.snr_db is None


def test_a_short_recording_is_repeated():
    noise = hum(300)
    plan = planner(noises=[noise], noise_prob=1.0)
    sound = plan.render(hum(1000), Distortion(added=AddedSound("noise", ((0, 200),), 5.0))).added
    np.testing.assert_array_equal(sound, np.concatenate([noise[200:], noise, noise, noise])[:1000])


def test_without_recordings_of_noise_several_clips_make_a_babble():
    plan = planner(noise_prob=1.0, speech_share=0.0)
    distortion = plan.draw(3, clip=2, num_samples=RATE)
    assert distortion.added.kind == "babble"
    assert 4 <= len(distortion.added.crops) <= 8
    assert dbfs(plan.render(hum(RATE), distortion).added) == pytest.approx(-26, abs=3)


def test_noise_of_a_single_clip_is_refused():
    with pytest.raises(ValueError, match="noise of training clips needs two of them"):
        DistortionPlanner(AugmentationConfig(), ArrayRecordings([hum(100)]))


@pytest.mark.parametrize("speed", [0.9, 1.07])
def test_speed_changes_length_and_pitch_alike(speed):
    tone = (np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE) * 8000).astype(np.int16)
    faster = change_speed(tone, speed)
    assert len(faster) == round(RATE / speed)
    spectrum = np.abs(np.fft.rfft(faster * np.hanning(len(faster))))
    assert np.argmax(spectrum) * RATE / len(faster) == pytest.approx(440 * speed, abs=2)


def test_no_clip_is_slowed_beyond_what_the_tower_takes():
    config = AugmentationConfig(**{**NOTHING, "speed_prob": 1.0, "speed": (0.5, 0.5)})
    plan = DistortionPlanner(config, ArrayRecordings([hum(100)]), max_samples=1500)
    distortion = plan.draw(0, clip=0, num_samples=1000)
    assert distortion.num_samples(1000) == 1500


def reverberation_time(tail):
    """From the slope of the energy still to come (Schroeder 1965), between -5 and -25 dB."""
    still_to_come = np.cumsum(np.square(tail[::-1].astype(np.float64)))[::-1]
    decay_db = 10 * np.log10(still_to_come / still_to_come[0])
    first, last = np.searchsorted(-decay_db, [5, 25])
    slope, _ = np.polyfit(np.arange(first, last) / RATE, decay_db[first:last], 1)
    return -60 / slope


@pytest.mark.parametrize("rt60", [0.2, 0.4, 0.8])
@pytest.mark.parametrize("ratio", [0.0, 12.0])
def test_a_synthetic_room_has_the_reverberation_time_and_the_ratio_asked_for(rt60, ratio):
    times = []
    for seed in range(8):
        response = synthetic_impulse_response(rt60, ratio, np.random.default_rng(seed))
        assert np.argmax(np.abs(response)) == 0
        direct, rest = response[:40], response[40:]
        energy_ratio = np.square(direct, dtype=np.float64).sum() / np.square(rest, dtype=np.float64).sum()
        assert 10 * np.log10(energy_ratio) == pytest.approx(ratio, abs=0.01)
        times.append(reverberation_time(response[800:]))
    assert np.mean(times) == pytest.approx(rt60, rel=0.05)


def test_a_recorded_response_starts_at_its_direct_sound():
    recording = np.zeros(3000, np.int16)
    recording[[700, 900]] = [-20000, 5000]
    response = measured_impulse_response(recording)
    assert (len(response), response[0], response[200]) == (2300, 1.0, -0.25)
    with pytest.raises(ValueError, match="holds no sound, so it is no impulse response"):
        measured_impulse_response(np.zeros(100, np.int16))


def test_a_silent_response_is_named_with_its_folder():
    config = AugmentationConfig(impulse_responses="rooms", reverb_prob=1.0)
    silence = ArrayRecordings([np.zeros(100, np.int16)])
    plan = DistortionPlanner(config, ArrayRecordings([hum(100)] * 2), impulse_responses=silence)
    with pytest.raises(ValueError, match="impulse_responses: recording 0 of rooms: holds no sound"):
        plan.render(hum(100), Distortion(room=Room(recording=0)))


@pytest.mark.parametrize(("low", "high"), [(300.0, 3400.0), (0.0, 3800.0), (100.0, 7000.0)])
def test_a_band_passes_what_is_inside_and_stops_what_is_not(low, high):
    gain_db = 20 * np.log10(np.abs(np.fft.rfft(band_filter(low, high), 1 << 14)) + 1e-12)
    hertz = np.fft.rfftfreq(1 << 14, 1 / RATE)
    assert np.abs(gain_db[(hertz > low + 100) & (hertz < high - 100)]).max() < 0.1
    stopped = (hertz < low - 100) | (hertz > high + 100)
    assert gain_db[stopped].max() < -50


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"noise_prb": 0.5}, "'noise_prb' is no setting; did you mean 'noise_prob'"),
        ({"noise_prob": 1.5}, r"noise_prob must lie in \[0, 1\], not 1.5"),
        ({"noise_snr_db": [20, -5]}, r"noise_snr_db must be \[lowest, highest\], not \[20, -5\]"),
        ({"speed": [0, 1]}, r"speed must be positive, not \[0, 1\]"),
        ({"band_low_hz": [100, 3000]}, "band_low_hz must lie below band_high_hz"),
        ({"rt60_seconds": [0.001, 0.3]}, r"rt60_seconds must be at least 0.02, not \[0.001, 0.3\]"),
        ({"gain_prob": "often"}, r"gain_prob must lie in \[0, 1\], not often"),
        ({"speed": 1.1}, r"speed must be \[lowest, highest\], not 1.1"),
        ({"augmented_copies": -1}, "augmented_copies must not be negative, not -1"),
    ],
)
def test_a_wrong_setting_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        AugmentationConfig.from_dict(wrong)


def test_settings_come_from_a_recipe():
    config = AugmentationConfig.from_dict({"noise": "packs/noise", "noise_snr_db": [0, 15]})
    assert (config.noise, config.noise_snr_db, config.noise_prob) == ("packs/noise", (0, 15), 0.5)


def test_the_examples_run():
    tried = doctest.testmod(impulse_responses)
    assert (tried.failed, tried.attempted > 0) == (0, True)
