"""Every kind of clip that people hold in their hands, and recordings that are not what they say."""

import io
import struct

import datasets
import numpy as np
import pytest
import soundfile
import torch

from qwen_term_retrieval.audio import decoding, file_audio
from qwen_term_retrieval.audio.decoding import clip_blocks, clip_pcm
from qwen_term_retrieval.audio.file_audio import FileAudio, FileClip
from qwen_term_retrieval.audio.sound_files import probe
from qwen_term_retrieval.audio.sources import Recording
from qwen_term_retrieval.errors import BadAudioError

PCM = np.random.default_rng(0).normal(0, 3000, 24_000).astype(np.int16)


def wav(data_bytes, riff_bytes=0, pcm=PCM, after=b"", subtype=1, width=2, channels=1):
    rate = 16_000
    fmt = struct.pack("<IHHIIHH", 16, subtype, channels, rate, rate * width * channels, width * channels, 8 * width)
    data = b"data" + struct.pack("<I", data_bytes & 0xFFFFFFFF) + pcm.tobytes()
    return b"RIFF" + struct.pack("<I", riff_bytes & 0xFFFFFFFF) + b"WAVEfmt " + fmt + data + after


@pytest.mark.parametrize("said", [0, 0xFFFFFFFF, 2147483647, 2147483647 - 36])
def test_a_wav_whose_header_lies_is_heard_whole(tmp_path, said):
    (tmp_path / "lies.wav").write_bytes(wav(said, said))
    for audio in (tmp_path / "lies.wav", wav(said, said), io.BytesIO(wav(said, said))):
        np.testing.assert_array_equal(clip_pcm(audio), PCM)
    assert probe(tmp_path / "lies.wav").num_frames == len(PCM)


def test_a_wav_of_floats_and_channels_whose_header_lies_is_heard_whole():
    floats = np.stack([PCM, -PCM // 2], axis=1).astype(np.float32) / 32768
    heard = clip_pcm(Recording(wav(0, pcm=floats, subtype=3, width=4, channels=2), channel=1))
    np.testing.assert_array_equal(heard, -PCM // 2)


def test_a_wav_of_nothing_stays_empty():
    notes = b"LIST" + struct.pack("<I", 4) + b"INFO"
    for raw in (wav(0, pcm=PCM[:0]), wav(0, pcm=PCM[:0], after=notes)):
        with pytest.raises(BadAudioError, match="holds 0 samples"):
            clip_pcm(raw)


def test_what_lies_beyond_4_gib_of_a_wav_is_heard(tmp_path):
    path = tmp_path / "long.wav"
    path.write_bytes(wav(0xFFFFFFFF, 0xFFFFFFFF))
    with path.open("r+b") as file:
        file.truncate(5 << 30)  # sparse
    assert probe(path).num_frames == ((5 << 30) - 44) // 2


@pytest.mark.parametrize(
    "clip",
    [
        (16_000, PCM),  # as Gradio gives it
        (PCM, np.int64(16_000)),
        {"bytes": wav(48_000, 48_036), "path": None},
        {"audio": {"array": PCM / 32768, "sampling_rate": 16_000}},
        (torch.from_numpy(PCM), 16_000),
        (torch.from_numpy(PCM / 32768).requires_grad_(), 16_000),
        (torch.from_numpy(PCM / 32768)[:, None], 16_000),
        Recording((np.stack([PCM, 0 * PCM], axis=1), 16_000), channel=0),
    ],
)
def test_every_kind_of_clip_is_the_same_samples(clip):
    np.testing.assert_array_equal(clip_pcm(clip), PCM)


def test_a_file_is_read_from_its_beginning_wherever_it_stands(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, PCM, 16_000, format="FLAC")  # it stands at its end now
    np.testing.assert_array_equal(clip_pcm(buffer), PCM)
    (tmp_path / "clip.flac").write_bytes(buffer.getvalue())
    with (tmp_path / "clip.flac").open("rb") as file:
        np.testing.assert_array_equal(clip_pcm(file), PCM)
        np.testing.assert_array_equal(clip_pcm(file), PCM)


def test_what_cannot_be_a_clip_is_told_what_can(tmp_path):
    (tmp_path / "clip.wav").write_bytes(wav(48_000, 48_036))
    with (tmp_path / "clip.wav").open(encoding="latin-1") as text:
        refused = [
            (text, r"clip\.wav: the file is open as text; open it with mode 'rb'"),
            ({"text": "hello", "speech": PCM}, "a row without audio: it has text, speech"),
            ((np.stack([PCM, PCM]), 16_000), r"\(2, 24000\).*its transpose"),
            ((PCM.astype(np.int64), 16_000), "an array of int64"),
            (7, "expected a path, an array or a Clip, not int"),
            (PCM, "an array without its sampling rate; give sampling_rate"),
        ]
        for clip, message in refused:
            with pytest.raises(BadAudioError, match=message):
                clip_pcm(clip)


def test_channels_that_cancel_out_are_refused_and_each_is_heard_alone(tmp_path):
    noise = np.random.default_rng(1).normal(0, 10, (len(PCM), 2)).astype(np.int16)
    soundfile.write(tmp_path / "opposite.wav", np.stack([PCM, -PCM], axis=1) + noise, 16_000)
    with pytest.raises(BadAudioError, match=r"opposite\.wav: its channels cancel out .*Take one of them: channel=0"):
        clip_pcm(tmp_path / "opposite.wav")
    np.testing.assert_array_equal(clip_pcm(Recording(tmp_path / "opposite.wav", channel=1)), -PCM + noise[:, 1])
    two_voices = np.stack([PCM, PCM[::-1]], axis=1)
    assert len(clip_pcm((two_voices, 16_000))) == len(PCM)
    with pytest.raises(BadAudioError, match="has no channel 2"):
        clip_pcm(Recording(tmp_path / "opposite.wav", channel=2))


def test_blocks_of_a_clip_are_its_samples_and_a_long_file_is_never_whole_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(file_audio, "RECENT_BYTES", 10_000)
    monkeypatch.setattr(decoding, "FRAMES_PER_BLOCK", 1_000)
    soundfile.write(tmp_path / "long.flac", PCM, 16_000)
    reference = FileAudio(16_000).encode_example(
        {"key": "a", "path": str(tmp_path / "long.flac"), "start": 5_500, "length": 12_000, "suffix": ".flac"}
        | dict.fromkeys(("byte_offset", "num_bytes", "modified", "channel"))
    )
    clip = FileClip(**reference, sampling_rate=16_000)
    blocks = list(clip_blocks(clip))
    assert max(map(len, blocks)) <= 1_000
    np.testing.assert_array_equal(np.concatenate(blocks), PCM[5_500:17_500])
    with pytest.raises(BadAudioError, match=r"row 'a'.*promises 1000 samples more"):
        list(clip_blocks(FileClip(**reference | {"length": 19_500}, sampling_rate=16_000)))


def test_a_dataset_row_of_undecoded_audio_is_heard(tmp_path):
    (tmp_path / "clip.wav").write_bytes(wav(48_000, 48_036))
    rows = datasets.Dataset.from_dict({"audio": [str(tmp_path / "clip.wav")]}).cast_column(
        "audio", datasets.Audio(decode=False)
    )
    np.testing.assert_array_equal(clip_pcm(rows[0]), PCM)


def test_a_file_mastered_loud_is_heard_though_its_codec_overshoots(tmp_path):
    loud = np.sign(np.random.default_rng(2).normal(size=48_000)).astype(np.float32)
    soundfile.write(tmp_path / "loud.ogg", loud, 48_000, format="OGG", subtype="VORBIS")
    decoded, _ = soundfile.read(tmp_path / "loud.ogg")
    assert (np.abs(decoded) > 1).mean() > 0.02
    assert len(clip_pcm(tmp_path / "loud.ogg")) == 16_000


def test_a_file_of_floats_on_the_scale_of_int16_is_refused(tmp_path):
    soundfile.write(tmp_path / "wrong.wav", PCM.astype(np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(BadAudioError, match=r"wrong\.wav: \d+ of 24000 samples lie outside \[-1, 1\]\. Scale"):
        clip_pcm(tmp_path / "wrong.wav")
