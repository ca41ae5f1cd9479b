from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from pathlib import Path
from unittest import mock

import fsspec
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.audio import decoding, sound_files
from qwen_term_retrieval.audio.decoding import clip_pcm, pcm_blocks, stretch_pcm
from qwen_term_retrieval.audio.sound_files import AudioHeader, probe
from qwen_term_retrieval.audio.sources import FileSlice
from qwen_term_retrieval.errors import BadAudioError

RATE = 16_000
DEMO = Path(__file__).parents[2] / "builders" / "term_audio" / "demo"


def decode(audio, **kwargs) -> tuple[np.ndarray, int]:
    blocks = list(pcm_blocks(audio, RATE, **kwargs))
    return np.concatenate([pcm for pcm, _ in blocks]), sum(clipped for _, clipped in blocks)


def speech() -> np.ndarray:
    """Real speech: int16 (num_samples,), 16 kHz."""
    row = json.loads((DEMO / "train.termaudio").read_text(encoding="utf-8").splitlines()[0])
    return soundfile.read(DEMO / row["audio"], dtype="int16")[0]


def encoded(container: str, subtype: str | None = None, rate: int = RATE, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    # soundfile writes int16 into files of floats as it is, far outside [-1, 1].
    pcm = speech() / 32768 if subtype in ("FLOAT", "DOUBLE") else speech()
    pcm = pcm if channels == 1 else np.stack([pcm] * channels, axis=1)
    soundfile.write(buffer, pcm, rate, format=container, subtype=subtype)
    return buffer.getvalue()


LOSSLESS = [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("AIFF", "PCM_16"), ("W64", "PCM_16"), ("CAF", "ALAC_16")]
INEXACT = [
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAV", "ULAW"),
    ("WAV", "ALAW"),
    ("WAV", "IMA_ADPCM"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", None),
]


@pytest.mark.parametrize(("container", "subtype"), LOSSLESS)
def test_mono_speech_of_16_bits_at_the_packs_rate_is_the_same_samples_in_every_lossless_format(container, subtype):
    pcm, clipped = decode(encoded(container, subtype))
    np.testing.assert_array_equal(pcm, speech())
    assert clipped == 0


@pytest.mark.parametrize(("container", "subtype"), LOSSLESS + INEXACT)
def test_every_encoding_is_what_libsndfile_hears_rounded_to_16_bits(container, subtype):
    raw = encoded(container, subtype)
    floats, rate = soundfile.read(io.BytesIO(raw), dtype="float32")
    assert rate == RATE
    expected = np.clip(np.rint(floats * 32768), -32768, 32767)
    # One: soundfile.read seeks before it reads, after which MP3 is not the same to the last bit.
    np.testing.assert_allclose(decode(raw)[0], expected, atol=1 if container == "MP3" else 0)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_one_channel_of_several_is_taken_as_it_is(subtype):
    both = np.stack([speech(), speech()[::-1]], axis=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, both, RATE, format="WAV", subtype=subtype)
    for channel in (0, 1):
        np.testing.assert_array_equal(decode(buffer.getvalue(), channel=channel)[0], both[:, channel])
        np.testing.assert_array_equal(decode(both, array_rate=RATE, channel=channel)[0], both[:, channel])
    with pytest.raises(BadAudioError, match="has no channel 2, counted from 0, but 2 in all"):
        decode(buffer.getvalue(), channel=2)


@pytest.mark.parametrize(("container", "subtype"), LOSSLESS + INEXACT)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_recording_decoded_in_blocks_equals_the_whole_decoded_at_once(container, subtype, channels):
    raw = encoded(container, subtype, channels=channels)
    whole, _ = decode(raw)
    with mock.patch.object(decoding, "FRAMES_PER_BLOCK", 1000):
        np.testing.assert_array_equal(decode(raw)[0], whole)


@pytest.mark.parametrize(("container", "subtype"), LOSSLESS + INEXACT)
@pytest.mark.parametrize("rate", [8000, 48_000])
def test_two_channels_at_any_rate_are_the_same_speech_at_the_packs_rate(container, subtype, rate):
    def loudness(pcm: np.ndarray) -> np.ndarray:
        """Root mean square of each 50 ms: codecs delay by a few milliseconds."""
        return np.sqrt(np.mean(pcm[: len(pcm) // 800 * 800].reshape(-1, 800).astype(float) ** 2, axis=1))

    found = loudness(decode(encoded(container, subtype, rate, channels=2))[0])
    expected = loudness(decode(speech(), array_rate=rate)[0])
    assert len(found) == pytest.approx(len(expected), abs=2)
    num_values = min(len(found), len(expected))
    assert np.corrcoef(found[:num_values], expected[:num_values])[0, 1] > 0.9


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
        (np.zeros(5, np.float32), 1, "an array at 1 Hz; rates are from 1000"),
        (np.zeros((2, 500), np.float32), RATE, r"shape \(2, 500\); give \(num_samples,\)"),
        (np.zeros((0, 2), np.float32), RATE, "holds 0 samples"),
        (np.array([np.inf]), RATE, "sample 0 is NaN or infinite"),
    ],
)
def test_arrays_that_are_no_audio_are_refused(array, rate, message):
    with pytest.raises(BadAudioError, match=message):
        decode(array, array_rate=rate)


def sources(raw: bytes, folder: Path) -> dict[str, object]:
    """One encoded recording, in every place that audio can be read from."""
    (folder / "a.flac").write_bytes(raw)
    (folder / "shard.tar").write_bytes(bytes(512) + raw + bytes(100))
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("d/a.flac", raw)
    fsspec.filesystem("memory").pipe("/decoding/a.flac", raw)
    in_latin_1 = folder / os.fsdecode(b"caf\xe9.flac")
    in_latin_1.write_bytes(raw)
    return {
        "path": folder / "a.flac",
        "path that is no UTF-8": in_latin_1,
        "name": str(folder / "a.flac"),
        "bytes": raw,
        "slice": FileSlice(folder / "shard.tar", 512, len(raw), ".flac"),
        "url": "memory://decoding/a.flac",
        "url of a member": f"zip://d/a.flac::{folder / 'a.zip'}",
    }


@pytest.mark.parametrize("bytes_in_memory", [sound_files.BYTES_IN_MEMORY, 1000], ids=["read at once", "streamed"])
def test_a_recording_is_the_same_from_wherever_it_is_read(bytes_in_memory, tmp_path):
    with mock.patch.object(sound_files, "BYTES_IN_MEMORY", bytes_in_memory):
        for name, source in sources(encoded("FLAC"), tmp_path).items():
            np.testing.assert_array_equal(decode(source)[0], speech(), err_msg=name)
            assert probe(source) == AudioHeader(len(speech()), RATE, 1), name


def test_what_is_not_where_it_should_be_is_refused_with_the_reason(tmp_path):
    found = sources(encoded("FLAC"), tmp_path)
    for source, message in [
        ("memory://decoding/b.flac", "the file does not exist"),
        (f"zip://b.flac::{tmp_path / 'a.zip'}", "the file does not exist"),
        (f"zip://b.flac::{tmp_path / 'b.zip'}", "the file does not exist"),
        ("nosuch://a.flac", "its file system cannot be reached from here: Protocol not known"),
        (FileSlice(tmp_path / "b.tar", 0, 10), "the file does not exist"),
        (tmp_path / ("x" * 5000), "the file cannot be found: File name too long"),
        (FileSlice(tmp_path / "shard.tar", 512, 1 << 30), r"shard.tar ends before byte .*; it was cut short"),
        (FileSlice(tmp_path / "shard.tar", 0, 512), "soundfile cannot read it"),
    ]:
        with pytest.raises(BadAudioError, match=message):
            decode(source)
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    raw[200] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(BadAudioError, match="its archive is broken here"):
        decode(found["url of a member"])


def test_a_file_that_another_system_named_is_pointed_at(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "cafe\u0301.flac").write_bytes(encoded("FLAC"))
    for name in ("sub/caf\u00e9.flac", "sub\\cafe\u0301.flac"):
        with pytest.raises(BadAudioError, match=r"does not exist, but '.*/sub/cafe\\u0301.flac' does: write its slash"):
            decode(f"{tmp_path}/{name}")


def test_a_header_tells_length_rate_and_channels_without_decoding():
    assert probe(encoded("OGG", "OPUS", 48_000, channels=2)) == AudioHeader(len(speech()), 48_000, 2)
    with pytest.raises(BadAudioError, match="soundfile cannot read it"):
        probe(b"no audio")


@pytest.mark.parametrize(("container", "subtype"), [*LOSSLESS, ("WAV", "FLOAT"), ("WAV", "ULAW"), ("AU", "PCM_16")])
def test_a_file_cut_short_is_no_short_file(container, subtype):
    raw = encoded(container, subtype)
    with pytest.raises(BadAudioError, match=r"cut short|corrupt near sample|soundfile cannot read it"):
        decode(raw[: len(raw) // 2])


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFFFFF - 36])
def test_a_wav_written_to_a_pipe_does_not_know_its_size_and_is_no_cut_file(size):
    raw = bytearray(encoded("WAV", "PCM_16"))
    raw[4:8] = struct.pack("<I", size)
    place = raw.index(b"data") + 4
    raw[place : place + 4] = struct.pack("<I", size)
    np.testing.assert_array_equal(decode(bytes(raw))[0], speech())


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (22, struct.pack("<H", 1000), "its header says 1000 channels; the limit is 64"),
        (24, struct.pack("<I", 3), "its header says 3 Hz; rates are from 1000"),
        (24, struct.pack("<I", 2_000_000_000), "its header says 2000000000 Hz"),
    ],
)
def test_an_impossible_header_is_refused_before_anything_is_allocated(place, value, message):
    raw = bytearray(encoded("WAV", "PCM_16"))
    raw[place : place + len(value)] = value
    with pytest.raises(BadAudioError, match=message):
        decode(bytes(raw))
    with pytest.raises(BadAudioError, match=message):
        probe(bytes(raw))


def test_a_flac_that_claims_far_more_samples_than_it_holds_is_refused(tmp_path):
    raw = bytearray(encoded("FLAC"))
    raw[21] |= 0x0F  # the upper four of the 36 bits of STREAMINFO's length
    with pytest.raises(BadAudioError, match=r"cut short|corrupt near sample"):
        decode(bytes(raw))


@pytest.fixture(scope="module")
def every_format() -> dict[str, bytes]:
    return {f"{container} {subtype}": encoded(container, subtype) for container, subtype in LOSSLESS + INEXACT}


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # broken files make libsndfile seek to -1
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_recordings_are_decoded_or_refused_and_never_crash_or_grow(every_format, data):
    raw = every_format[data.draw(st.sampled_from(sorted(every_format)))]
    mutated = bytearray(raw)
    places = st.integers(0, len(raw) - 1) | st.integers(0, 100)
    for place in data.draw(st.lists(places, max_size=8)):
        mutated[place] = data.draw(st.integers(0, 255))
    mutated = mutated[: data.draw(st.integers(1, len(raw)))]
    try:
        num_samples = len(decode(bytes(mutated))[0])
    except BadAudioError:
        num_samples = 0
    # No encoding here holds more than 100 samples a byte, and no rate in the limits makes more than 16 of one.
    assert num_samples <= 1600 * len(raw)


def test_a_container_whose_header_says_no_channel_is_refused(every_format):
    pytest.importorskip("av")
    broken = bytearray(every_format["CAF ALAC_16"][:148])
    broken[52] = 0
    with pytest.raises(BadAudioError, match="no channel"):
        decode(bytes(broken))


def test_a_stretch_of_a_recording_is_what_the_whole_holds_there(tmp_path):
    pcm = np.random.default_rng(3).integers(-9_000, 9_000, 40 * 22_050).astype(np.int16)
    soundfile.write(tmp_path / "long.flac", pcm, 22_050)
    whole = clip_pcm(tmp_path / "long.flac")
    for first, last in ((0.0, 1.5), (17.25, 21.0), (39.0, 99.0), (50.0, 51.0)):
        assert np.array_equal(
            stretch_pcm(tmp_path / "long.flac", first, last), whole[int(first * 16_000) : round(last * 16_000)]
        )
