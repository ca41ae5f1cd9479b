"""`packed=False`: the rows of a pack, to the last bit, from a corpus that nothing was packed of."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from datasets import Dataset, DatasetInfo, DownloadMode, concatenate_datasets, load_dataset, load_from_disk
from datasets.table import embed_table_storage

from qwen_term_retrieval import CorpusError, Utterance, pack_corpus, read_corpus, to_hf_audio
from qwen_term_retrieval.audio import file_audio
from qwen_term_retrieval.audio.decoding import clip_pcm
from qwen_term_retrieval.audio.file_audio import FileAudio, FileClip
from qwen_term_retrieval.errors import BadAudioError
from qwen_term_retrieval.packs.loose import LooseCorpus

ENCODINGS = {
    "flac": {"format": "FLAC"},
    "wav": {"format": "WAV"},
    "float.wav": {"format": "WAV", "subtype": "FLOAT"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
}


@pytest.fixture(autouse=True)
def _nothing_decoded_yet(monkeypatch):
    monkeypatch.setattr(file_audio, "_recent", type(file_audio._recent)())


@pytest.fixture
def write_manifest(tmp_path, noise):
    """Writes rows, and audio of the given encodings, rates and channels for them; returns the manifest."""

    def write(rows: list[dict], *, rate: int = 16_000, channels: int = 1, seconds: float = 1.0) -> Path:
        folder = tmp_path / f"corpus{rate}x{channels}"
        folder.mkdir()
        for number, name in enumerate(dict.fromkeys(row["audio"] for row in rows)):
            frames = np.stack([noise(10 * number + c, seconds, rate) for c in range(channels)], axis=1)
            soundfile.write(folder / name, frames / 32768, rate, **ENCODINGS[name.partition(".")[2]])
        manifest = folder / "train.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return manifest

    return write


def packed_and_loose(tmp_path: Path, manifest: Path) -> tuple[Dataset, Dataset]:
    pack_corpus(manifest, tmp_path / f"pack-{manifest.parent.name}", num_workers=1, quiet=True)
    packed = load_dataset(str(tmp_path / f"pack-{manifest.parent.name}"), split="train")
    return packed, load_dataset("term_audio", data_files=str(manifest), split="train", packed=False)


def assert_same_rows(packed: Dataset, loose: Dataset) -> None:
    assert loose.column_names == packed.column_names
    assert {**loose.features, "audio": None} == {**packed.features, "audio": None}
    assert loose.remove_columns("audio")[:] == packed.remove_columns("audio")[:]
    for row, expected in zip(loose, packed, strict=True):
        assert isinstance(row["audio"], FileClip)
        np.testing.assert_array_equal(row["audio"].pcm, expected["audio"].pcm)


def test_every_row_of_a_corpus_is_the_row_of_its_pack(corpus, hf_home, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    packed, loose = load_dataset(str(tmp_path / "pack")), load_dataset(str(corpus), packed=False)
    assert list(loose) == list(packed)
    for split in packed:
        assert_same_rows(packed[split], loose[split])
    assert not list(hf_home.rglob("*.dat"))


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 1), (32_000, 1), (22_050, 2), (8_000, 1)])
def test_samples_of_every_encoding_and_rate_are_those_that_packing_gives(write_manifest, tmp_path, rate, channels):
    names = [name for name in ENCODINGS if not (name == "opus" and rate in (22_050, 32_000))]
    rows = [{"audio": f"{i}.{name}", "text": name} for i, name in enumerate(names)]
    # One more than a whole number: of 32,001 samples at 32 kHz, resampling makes 16,000 and a half.
    manifest = write_manifest(rows, rate=rate, channels=channels, seconds=1 + 1 / rate)
    assert_same_rows(*packed_and_loose(tmp_path, manifest))


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("name", ["flac", "ogg", "wav"])
def test_segments_are_those_that_packing_cuts(write_manifest, tmp_path, name, rate):
    cuts = [(1.2, 2.0), (0.0, 0.5), (0.25, 1.3), (1.999, 2.02)]
    rows = [
        {"audio": f"long.{name}", "key": f"cut {i}", "clip_start": start, "clip_end": end, "terms": ["a"]}
        for i, (start, end) in enumerate(cuts)
    ]
    packed, loose = packed_and_loose(tmp_path, write_manifest(rows, rate=rate, seconds=2.0))
    assert_same_rows(packed, loose.select([2, 0, 1, 3]).select([1, 2, 0, 3]))


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("wav", s) for s in ("PCM_U8", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610")]
    + [
        ("flac", "PCM_24"),
        ("flac", "PCM_S8"),
        ("aiff", "PCM_16"),
        ("au", "ALAW"),
        ("caf", "ALAC_16"),
        ("w64", "DOUBLE"),
    ]
    + [("ogg", "VORBIS"), ("opus", "OPUS"), ("mp3", "MPEG_LAYER_III")],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_window_is_the_slice_of_the_whole_whatever_the_encoding(tmp_path, noise, name, subtype, channels):
    if subtype == "GSM610" and channels == 2:
        pytest.skip("GSM 06.10 is mono")
    path = tmp_path / f"a.{name}"
    frames = np.stack([noise(seed, 1.0) for seed in range(channels)], axis=1)
    soundfile.write(path, frames / 32768, 16_000, subtype, format="OGG" if name == "opus" else None)
    whole = clip_pcm(path)
    status = path.stat()
    clip = FileClip("a", str(path), None, status.st_size, "", status.st_mtime_ns, None, 0, len(whole), 16_000)
    for start, length in ((5000, 3000), (0, 100), (len(whole) - 7, 7), (12_345, 1), (0, len(whole))):
        np.testing.assert_array_equal(clip.window(start, length).pcm, whole[start : start + length])


@pytest.mark.parametrize("name", ["wav", "float.wav", "ogg"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_one_channel_of_a_recording_is_the_one_that_packing_takes(tmp_path, noise, name, rate):
    frames = np.stack([noise(seed, 1.0, rate) for seed in range(3)], axis=1) / 32768
    soundfile.write(tmp_path / f"a.{name}", frames, rate, **ENCODINGS[name])
    cuts = [(channel, *window) for channel in (0, 2, None) for window in ((0.0, None), (0.2, 0.7))]
    utterances = [
        Utterance(f"{i}", tmp_path / f"a.{name}", channel=channel, start=start, end=end)
        for i, (channel, start, end) in enumerate(cuts)
    ]
    pack_corpus(utterances, tmp_path / "pack", num_workers=1, quiet=True)
    loose = LooseCorpus(partial(iter, utterances), 16_000, "raise")
    rows = Dataset(pa.concat_tables(loose.tables("train")), DatasetInfo(features=loose.features))
    assert_same_rows(load_dataset(str(tmp_path / "pack"), split="train"), rows)
    with pytest.raises(CorpusError, match="has no channel 3, counted from 0, but 3 in all"):
        list(LooseCorpus(partial(iter, [replace(utterances[0], channel=3)]), 16_000, "raise").tables("train"))


def test_members_of_a_tar_are_read_where_they_lie(corpus, tmp_path):
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "train-0.tar", "w") as tar:
        for flac in sorted((corpus / "train").iterdir()):
            tar.add(flac, f"clip{flac.name}")
    rows = load_dataset("term_audio", data_dir=str(tmp_path / "shards"), split="train", packed=False)
    expected = [soundfile.read(path, dtype="int16")[0] for path in sorted((corpus / "train").iterdir())]
    for row, pcm in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(row["audio"].pcm, pcm)
        np.testing.assert_array_equal(row["audio"].trim(0.1, 0.2).pcm, pcm[1600:3200])


def test_audio_behind_a_url_is_fetched_when_it_is_read(corpus, tmp_path):
    with zipfile.ZipFile(tmp_path / "audio.zip", "w") as archive:
        archive.write(corpus / "train" / "0001.flac", "a/0001.flac")
    url = f"zip://a/0001.flac::{tmp_path / 'audio.zip'}"
    (tmp_path / "train.jsonl").write_text(json.dumps({"audio": url, "key": "from afar"}))
    rows = load_dataset("term_audio", data_files=str(tmp_path / "train.jsonl"), split="train", packed=False)
    expected = soundfile.read(corpus / "train" / "0001.flac", dtype="int16")[0]
    np.testing.assert_array_equal(rows[0]["audio"].pcm, expected)
    np.testing.assert_array_equal(rows[0]["audio"].trim(0.1, 0.2).pcm, expected[1600:3200])


@pytest.fixture
def rows(corpus) -> Dataset:
    return load_dataset(str(corpus), split="train", packed=False)


def original(corpus: Path, row: dict) -> np.ndarray:
    return soundfile.read(corpus / f"{row['key']}.flac", dtype="int16")[0]


def assert_rows_are_original(rows: Dataset, corpus: Path) -> None:
    assert isinstance(rows.features["audio"], FileAudio)
    for row in rows:
        np.testing.assert_array_equal(row["audio"].pcm, original(corpus, row))


def test_a_clip_from_a_file_is_used_as_one_from_a_pack(rows, corpus, tmp_path):
    clip, expected = rows[1]["audio"], original(corpus, rows[1])
    np.testing.assert_array_equal(clip["array"], expected.astype(np.float32) / 32768)
    assert clip["sampling_rate"] == 16_000
    assert not clip.pcm.flags.writeable
    assert clip.duration == pytest.approx(len(expected) / 16_000)
    np.testing.assert_array_equal(clip.trim(0.1, 0.25).trim(0.05, 0.1).pcm, expected[2400:3200])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clip)).pcm, expected)
    clip.to_wav(tmp_path / "a.wav")
    np.testing.assert_array_equal(soundfile.read(tmp_path / "a.wav", dtype="int16")[0], expected)
    with pytest.raises(ValueError, match="cannot trim a clip of"):
        clip.trim(0.0, 99.0)


def test_clips_survive_what_datasets_does_to_rows(rows, corpus, tmp_path):
    assert_rows_are_original(rows.map(lambda row: {"audio": row["audio"], "new": 1}), corpus)
    assert_rows_are_original(rows.map(lambda row: {"loud": int(row["audio"].pcm.max())}, num_proc=2), corpus)
    assert_rows_are_original(rows.filter(lambda row: row["audio"].duration > 0.5).shuffle(seed=0), corpus)
    assert_rows_are_original(concatenate_datasets([rows.select([3]), rows]), corpus)
    rows.save_to_disk(tmp_path / "saved")
    assert_rows_are_original(load_from_disk(tmp_path / "saved"), corpus)
    tensor = rows.with_format("torch")[1]["audio"]
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), rows[1]["audio"]["array"])
    trimmed = rows.map(lambda row: {"audio": row["audio"].trim(0.1, 0.2)})
    np.testing.assert_array_equal(trimmed[3]["audio"].pcm, rows[3]["audio"].pcm[1600:3200])


def keys_and_samples(rows: list[dict]) -> list:
    return [[row["key"], row["audio"].pcm.tolist()] for row in rows]


def test_forked_workers_decode_the_files_for_themselves(rows, corpus):
    expected = [[row["key"], original(corpus, row).tolist()] for row in rows]
    loader = torch.utils.data.DataLoader(
        rows, 4, num_workers=2, collate_fn=keys_and_samples, multiprocessing_context="fork"
    )
    assert list(chain(*loader)) == expected


def test_a_spawned_process_needs_nothing_but_the_pickled_dataset(rows, corpus):
    code = (
        "import json, pickle, sys\n"
        "rows = pickle.load(sys.stdin.buffer)\n"
        "print(json.dumps([[row['key'], row['audio'].pcm.tolist()] for row in rows]))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(rows), capture_output=True, check=True)
    assert json.loads(done.stdout) == [[row["key"], original(corpus, row).tolist()] for row in rows]


def test_streaming_gives_rows_without_preparing_anything(corpus, hf_home):
    streamed = load_dataset(str(corpus), split="train", streaming=True, packed=False)
    assert [row["key"] for row in streamed] == [u.key for u in read_corpus(corpus) if u.split == "train"]
    np.testing.assert_array_equal(next(iter(streamed))["audio"].pcm, original(corpus, {"key": "train/0000"}))
    assert not list((hf_home / "datasets").rglob("*.arrow"))


def test_a_missing_file_is_an_error_with_key_and_path(rows, corpus):
    (corpus / "train" / "0002.flac").unlink()
    with pytest.raises(BadAudioError, match=r"row 'train/0002', file .*0002.flac: No such file.*load it again"):
        _ = rows[2]["audio"].pcm


def test_a_changed_file_is_an_error_until_the_corpus_is_loaded_anew(rows, corpus, noise):
    soundfile.write(corpus / "train" / "0002.flac", noise(99), 16_000)
    with pytest.raises(BadAudioError, match=r"row 'train/0002', file .*has changed since.*force_redownload"):
        _ = rows[2]["audio"].pcm
    anew = load_dataset(str(corpus), split="train", packed=False, download_mode=DownloadMode.FORCE_REDOWNLOAD)
    np.testing.assert_array_equal(anew[2]["audio"].pcm, noise(99))


def test_a_file_that_breaks_off_is_an_error_with_key_and_path(corpus):
    flac = corpus / "train" / "0001.flac"
    flac.write_bytes(flac.read_bytes()[:-2000])
    rows = load_dataset(str(corpus), split="train", packed=False)
    with pytest.raises(BadAudioError, match=r"row 'train/0001', file .*0001.flac: "):
        _ = rows[1]["audio"].pcm


def test_a_file_without_a_readable_header_is_refused_at_once_or_skipped(corpus, caplog):
    (corpus / "train" / "0001.flac").write_bytes(b"no audio")
    with pytest.raises(CorpusError, match=r"train.termaudio, line 2: key 'train/0001'.*soundfile cannot read it"):
        load_dataset(str(corpus), packed=False)
    rows = load_dataset(str(corpus), split="train", packed=False, on_error="skip")
    assert rows["key"][:] == [f"train/{i:04d}" for i in (0, 2, 3, 4, 5)]
    assert "train/0001" in caplog.text
    with pytest.raises(ValueError, match="without a pack it must be 'raise' or 'skip'"):
        load_dataset(str(corpus), packed=False, on_error="silence")


def test_auto_serves_files_until_there_is_a_pack_and_then_the_pack(corpus):
    def feature(packed):
        return type(load_dataset(str(corpus), split="train", packed=packed).features["audio"]).__name__

    assert [feature("auto"), feature(True), feature("auto"), feature(False)] == [
        "FileAudio",
        "MmapAudio",
        "MmapAudio",
        "FileAudio",
    ]


def test_a_pack_is_opened_whatever_packed_says(corpus, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    for packed in (True, False, "auto"):
        rows = load_dataset(str(tmp_path / "pack"), split="train", packed=packed)
        assert type(rows.features["audio"]).__name__ == "MmapAudio"
    with pytest.raises(ValueError, match="it must be True, False or 'auto'"):
        load_dataset(str(tmp_path / "pack"), packed="maybe")


def test_audio_held_in_memory_is_refused_with_the_remedy(corpus, tmp_path):
    audio = [{"bytes": path.read_bytes(), "path": path.name} for path in (corpus / "train").iterdir()]
    Dataset.from_dict({"audio": audio, "key": [a["path"] for a in audio]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(CorpusError, match=r"held in memory.*packed=True"):
        load_dataset("term_audio", data_files=str(tmp_path / "train.parquet"), packed=False)


def test_a_file_whose_name_no_table_can_hold_is_refused_with_the_remedy(tmp_path, noise):
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    soundfile.write(tmp_path / "cafe.wav", noise(0), 16_000)
    (tmp_path / "cafe.wav").rename(path)
    rows = LooseCorpus(lambda: iter([Utterance("cafe", path)]), 16_000, "raise").tables("train")
    with pytest.raises(CorpusError, match=r"caf.udce9.wav: its name is no UTF-8.* or load with packed=True"):
        next(rows)


def test_recordings_decoded_lately_are_kept_up_to_a_limit(write_manifest, monkeypatch):
    manifest = write_manifest([{"audio": f"{i}.ogg"} for i in range(4)])
    rows = load_dataset("term_audio", data_files=str(manifest), split="train", packed=False)
    monkeypatch.setattr(file_audio, "RECENT_BYTES", 70_000)
    for row in rows:
        _ = row["audio"].pcm
    assert len(file_audio._recent) == 2


def test_relative_paths_are_noted_whole(corpus, monkeypatch):
    monkeypatch.chdir(corpus.parent)
    rows = load_dataset("term_audio", data_files="corpus/train.termaudio", split="train", packed=False)
    monkeypatch.chdir(os.path.sep)
    assert len(rows[0]["audio"].pcm) == rows[0]["audio"].length


def test_references_to_files_are_not_published_and_real_audio_is(rows, corpus):
    with pytest.raises(ValueError, match=r"references to audio files on this machine.*qtr pack.*push_to_hub"):
        embed_table_storage(rows.data.table)
    assert len(to_hf_audio(rows, format="flac")) == len(rows)
