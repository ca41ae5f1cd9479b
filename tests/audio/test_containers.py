"""What phones, browsers and meetings record, written by ffmpeg's own encoders and heard through PyAV."""

import io
import logging
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from qwen_term_retrieval.audio import containers
from qwen_term_retrieval.audio.decoding import clip_pcm, pcm_blocks
from qwen_term_retrieval.audio.sound_files import probe
from qwen_term_retrieval.audio.sources import Recording
from qwen_term_retrieval.errors import BadAudioError
from qwen_term_retrieval.packs.loading import load_split

av = pytest.importorskip("av")

# suffix, muxer, encoder, rate
FORMATS = [
    ("m4a", "ipod", "aac", 44_100),
    ("m4a", "ipod", "alac", 44_100),
    ("aac", "adts", "aac", 48_000),
    ("mp4", "mp4", "aac", 48_000),
    ("webm", "webm", "libopus", 48_000),
    ("mkv", "matroska", "ac3", 48_000),
    ("wma", "asf", "wmav2", 44_100),
    ("3gp", "3gp", "libopencore_amrnb", 8_000),
]


def write(path, muxer, tracks, *, with_video=False):
    """Tracks of (encoder, int16 at 16 kHz, rate, language, seconds it starts at)."""
    with av.open(path, "w", format=muxer) as container:
        if with_video:
            video = container.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        opened = []
        for encoder, pcm, rate, language, start in tracks:
            frames = pcm[:, None] if pcm.ndim == 1 else pcm
            stream = container.add_stream(encoder, rate=rate, layout="mono" if frames.shape[1] == 1 else "stereo")
            stream.bit_rate = 12_200 if "amr" in encoder else 128_000
            if language:
                stream.metadata["language"] = language
            opened.append((stream, soxr.resample(frames.astype(np.float32) / 32768, 16_000, rate), start))
        if with_video:
            for number in range(10):
                picture = av.VideoFrame(64, 64, "yuv420p")
                picture.pts = number
                container.mux(video.encode(picture))
            container.mux(video.encode())
        for stream, samples, start in opened:
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples.T), format="fltp", layout=stream.layout.name
            )
            frame.sample_rate, frame.pts = stream.rate, 0
            fifo = av.AudioFifo()
            converter = av.AudioResampler(format=stream.format.name, layout=stream.layout.name, rate=stream.rate)
            for part in converter.resample(frame):
                fifo.write(part)
            size, now = stream.codec_context.frame_size or 1024, round(start * stream.rate)
            while (part := fifo.read(size, partial=True)) is not None:
                part.pts, part.time_base = now, Fraction(1, stream.rate)
                now += part.samples
                container.mux(stream.encode(part))
            container.mux(stream.encode())


@pytest.fixture(scope="module")
def spoken(say):
    pause = np.zeros(8_000, np.int16)
    return np.concatenate([pause, say("atrial fibrillation"), pause])


def likeness(heard, spoken):
    """Correlation of what was heard with what was said, at the lag where it is best, within 100 ms."""
    size = 1 << 17
    heard, spoken = heard.astype(np.float64), spoken.astype(np.float64)
    products = np.fft.irfft(np.fft.rfft(heard, size) * np.fft.rfft(spoken, size).conj())
    nearby = np.concatenate([products[:1600], products[-1600:]])
    return nearby.max() / np.linalg.norm(heard) / np.linalg.norm(spoken)


@pytest.mark.parametrize(("suffix", "muxer", "encoder", "rate"), FORMATS)
def test_what_phones_record_is_heard(tmp_path, spoken, suffix, muxer, encoder, rate):
    path = tmp_path / f"clip.{suffix}"
    write(path, muxer, [(encoder, spoken, rate, "", 0.0)])
    heard = clip_pcm(path)
    # Some encoders begin or end with silence of their own.
    assert len(heard) == pytest.approx(len(spoken), abs=0.15 * 16_000)
    assert likeness(heard, spoken) > (0.9 if rate > 8_000 else 0.75)
    assert probe(path).num_frames == pytest.approx(len(spoken) * rate / 16_000, abs=0.15 * rate)
    with path.open("rb") as file:
        np.testing.assert_array_equal(clip_pcm(file), heard)
        np.testing.assert_array_equal(clip_pcm(io.BytesIO(path.read_bytes())), heard)


def test_times_are_those_that_a_player_shows(tmp_path, spoken):
    path = tmp_path / "late.mkv"
    write(path, "matroska", [("flac", spoken, 16_000, "", 1.5)], with_video=True)
    heard = clip_pcm(path)
    assert not heard[:24_000].any()
    np.testing.assert_allclose(heard[24_000 : 24_000 + len(spoken)], spoken, atol=1)


def test_more_than_eight_channels_are_heard(tmp_path, spoken):
    channels = np.zeros((16_000, 10), np.int16)
    channels[:, 9] = spoken[:16_000]
    path = tmp_path / "ten.mkv"
    with av.open(path, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="10 channels")
        frame = av.AudioFrame.from_ndarray(channels.reshape(1, -1), format="s16", layout="10 channels")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux(stream.encode(frame))
    np.testing.assert_allclose(clip_pcm(Recording(path, channel=9)), spoken[:16_000], atol=1)
    np.testing.assert_allclose(clip_pcm(path), spoken[:16_000] / 10, atol=1)


def test_a_clock_that_leaps_is_refused_though_each_leap_is_a_short_one(tmp_path, spoken, monkeypatch):
    path = tmp_path / "leaps.mkv"
    with av.open(path, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for second in (0, 3, 6):
            frame = av.AudioFrame.from_ndarray(spoken[None, :16_000], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, second * 16_000
            container.mux(stream.encode(frame))
    assert len(clip_pcm(path)) == 7 * 16_000
    monkeypatch.setattr(containers, "_MOST_SILENCE_SECONDS", 3)
    with pytest.raises(BadAudioError, match="its clock leaps, last by 2 s"):
        clip_pcm(path)


def test_a_track_is_chosen_and_those_there_are_are_named(tmp_path, spoken, caplog):
    path = tmp_path / "film.mkv"
    write(
        path, "matroska", [("flac", spoken, 16_000, "eng", 0), ("flac", spoken // 2, 16_000, "fra", 0)], with_video=True
    )
    np.testing.assert_allclose(clip_pcm(Recording(path, track=1))[: len(spoken)], spoken // 2, atol=1)
    with caplog.at_level(logging.INFO):
        np.testing.assert_allclose(clip_pcm(path)[: len(spoken)], spoken, atol=1)
    assert "of the audio tracks 0 (eng), 1 (fra), 0 is heard" in caplog.text
    with pytest.raises(BadAudioError, match=r"film.mkv \(track 2\): has no audio track 2, but 0 \(eng\), 1 \(fra\)"):
        clip_pcm(Recording(path, track=2))
    soundfile.write(tmp_path / "one.wav", spoken, 16_000)
    with pytest.raises(BadAudioError, match="has no audio track 1"):
        clip_pcm(Recording(tmp_path / "one.wav", track=1))


def test_a_film_without_sound_and_a_playlist_are_refused(tmp_path):
    write(tmp_path / "silent.mkv", "matroska", [], with_video=True)
    with pytest.raises(BadAudioError, match="finds no audio track in it, but video"):
        clip_pcm(tmp_path / "silent.mkv")
    soundfile.write(tmp_path / "part.wav", np.ones(16_000, np.int16), 16_000)
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path / 'part.wav'}\n")
    with pytest.raises(BadAudioError, match="cannot read it"):
        clip_pcm(tmp_path / "list.m3u8")


def test_a_cut_film_is_refused(tmp_path, spoken):
    with av.open(tmp_path / "whole.mp4", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        samples = np.tile(spoken, 10).astype(np.float32)[None] / 32768
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    raw = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(BadAudioError, match=r"cut short|corrupt near"):
        clip_pcm(tmp_path / "cut.mp4")


def test_without_pyav_the_extra_is_named(tmp_path, spoken, monkeypatch):
    write(tmp_path / "clip.m4a", "ipod", [("aac", spoken, 44_100, "", 0.0)])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        BadAudioError, match=r"clip\.m4a: soundfile cannot read it .*pip install 'qwen_term_retrieval\[av\]'"
    ):
        clip_pcm(tmp_path / "clip.m4a")


def test_what_libsndfile_knows_and_finds_broken_stays_refused(tmp_path, spoken):
    soundfile.write(tmp_path / "broken.wav", spoken, 16_000)
    raw = bytearray((tmp_path / "broken.wav").read_bytes())
    raw[16] = 3  # the size of the format
    with pytest.raises(BadAudioError, match="soundfile cannot read it"):
        list(pcm_blocks(bytes(raw), 16_000))


def test_a_corpus_may_hold_what_phones_record(tmp_path, spoken):
    (tmp_path / "corpus").mkdir()
    write(tmp_path / "corpus" / "clip.m4a", "ipod", [("aac", spoken, 44_100, "", 0.0)])
    Path(tmp_path, "corpus", "metadata.csv").write_text("file_name,text,terms\nclip.m4a,,atrial fibrillation\n")
    (row,) = load_split(str(tmp_path / "corpus"), "train")
    np.testing.assert_array_equal(row["audio"].pcm, clip_pcm(tmp_path / "corpus" / "clip.m4a"))
