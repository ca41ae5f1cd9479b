from __future__ import annotations

import io
from unittest import mock

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.audio import decoding
from qwen_term_retrieval.audio.decoding import BadAudioError, pcm_blocks

RATE = 16_000


def decode(audio, **kwargs) -> tuple[np.ndarray, int]:
    blocks = list(pcm_blocks(audio, RATE, **kwargs))
    return np.concatenate([pcm for pcm, _ in blocks]), sum(clipped for _, clipped in blocks)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".aiff"])
def test_sixteen_bits_at_the_packs_rate_pass_through_bit_for_bit(suffix, tmp_path):
    extremes = np.array([-32768, 32767, 0, -1, 1], np.int16)
    soundfile.write(tmp_path / f"a{suffix}", extremes, RATE, subtype="PCM_16")
    pcm, clipped = decode(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(pcm, extremes)
    assert clipped == 0


def test_stereo_at_44100_becomes_the_mean_of_its_channels_at_16000(tmp_path):
    rng = np.random.default_rng(0)
    stereo = rng.uniform(-0.5, 0.5, (44_100, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", stereo, 44_100, subtype="FLOAT")
    pcm, _ = decode(tmp_path / "a.wav")
    expected = soxr.resample(stereo.mean(axis=1), 44_100, RATE, quality="HQ")
    assert len(pcm) == RATE
    np.testing.assert_allclose(pcm / 32768, expected, atol=1 / 32768)


@settings(deadline=None, max_examples=25)
@given(num_samples=st.integers(100, 3000), rate=st.sampled_from([8000, 22_050, 48_000]), frames=st.integers(50, 700))
def test_a_recording_resampled_in_blocks_equals_the_whole_resampled_at_once(num_samples, rate, frames):
    wave = np.random.default_rng(num_samples).uniform(-0.5, 0.5, num_samples).astype(np.float32)
    whole, _ = decode(wave, array_rate=rate)
    with mock.patch.object(decoding, "FRAMES_PER_BLOCK", frames):
        blocks, _ = decode(wave, array_rate=rate)
    np.testing.assert_array_equal(blocks, whole)


def test_floats_out_of_range_are_clipped_and_counted_but_full_scale_is_not():
    pcm, clipped = decode(np.array([0.5, 1.0, 1.5, -1.0, -7.0], np.float64), array_rate=RATE)
    assert pcm.tolist() == [16384, 32767, 32767, -32768, -32768]
    assert clipped == 2


def test_encoded_bytes_are_decoded():
    buffer = io.BytesIO()
    soundfile.write(buffer, np.arange(100, dtype=np.int16), RATE, format="FLAC")
    assert decode(buffer.getvalue())[0].tolist() == list(range(100))


def test_what_has_no_right_value_is_refused_with_the_reason(tmp_path):
    bad = np.zeros(100, np.float32)
    bad[37] = np.nan
    soundfile.write(tmp_path / "nan.wav", bad, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "empty.wav", bad[:0], RATE)
    (tmp_path / "text.wav").write_text("no audio at all")
    (tmp_path / "headerless.raw").write_bytes(bytes(100))
    for name, message in [
        ("nan.wav", "sample 37 is NaN or infinite"),
        ("empty.wav", "holds 0 samples"),
        ("text.wav", "soundfile cannot read it .*convert it to WAV, FLAC or Ogg"),
        ("headerless.raw", "soundfile cannot read it"),
        ("missing.wav", "does not exist"),
    ]:
        with pytest.raises(BadAudioError, match=message):
            decode(tmp_path / name)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_corrupt_flac_is_refused(damage, tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).integers(-9000, 9000, 50_000, dtype=np.int16), RATE, format="FLAC")
    raw = bytearray(buffer.getvalue())
    if damage == "cut":
        del raw[len(raw) // 2 :]
    else:
        raw[len(raw) // 2] ^= 0x10
    (tmp_path / "a.flac").write_bytes(raw)
    with pytest.raises(BadAudioError, match="corrupt near sample"):
        decode(tmp_path / "a.flac")


@pytest.mark.parametrize(
    ("array", "rate", "message"),
    [
        (np.zeros(5, np.float32), None, "without its sampling rate"),
        (np.zeros(5, np.int32), RATE, "an array of int32"),
        (np.zeros((2, 500), np.float32), RATE, r"shape \(2, 500\); give \(num_samples,\)"),
        (np.zeros((0, 2), np.float32), RATE, "holds 0 samples"),
        (np.array([np.inf]), RATE, "sample 0 is NaN or infinite"),
    ],
)
def test_arrays_that_are_no_audio_are_refused(array, rate, message):
    with pytest.raises(BadAudioError, match=message):
        decode(array, array_rate=rate)
