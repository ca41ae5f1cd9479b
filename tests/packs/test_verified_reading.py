"""With `verify=True`, what is not what was packed is never returned."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Dataset, load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_term_retrieval import MmapAudio, Pack, pack_corpus
from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.format.shards import HEADER_BYTES

SHARD = "shard_00000.dat"


@pytest.fixture
def pack(corpus, tmp_path) -> Path:
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    return tmp_path / "pack"


def flip(path: Path, byte: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(byte)
        (value,) = file.read(1)
        file.seek(byte)
        file.write(bytes([value ^ (1 << bit)]))


def offset_bytes(rows: Dataset, row: int) -> int:
    return 2 * rows[row]["audio"].offset


def test_whole_clips_and_windows_are_the_samples_that_were_packed(pack, corpus):
    rows = load_dataset(str(pack), split="train", verify=True)
    assert rows.features["audio"] == MmapAudio(verify=True)
    for row in rows:
        expected = soundfile.read(corpus / f"{row['key']}.flac", dtype="int16")[0]
        np.testing.assert_array_equal(row["audio"].pcm, expected)
        np.testing.assert_array_equal(row["audio"].trim(0.1, 0.2).pcm, expected[1600:3200])
        assert not row["audio"].pcm.flags.writeable


def test_one_flipped_bit_makes_its_clip_an_error_with_key_shard_and_remedy_and_no_other(pack):
    rows = load_dataset(str(pack), split="train", verify=True)
    flip(pack / SHARD, offset_bytes(rows, 2) + 5000)
    for use in (lambda clip: clip.pcm, lambda clip: clip["array"], lambda clip: clip.trim(0, 0.05).pcm, np.asarray):
        with pytest.raises(PackError, match=rf"{SHARD}: clip 'train/0002' is damaged.*Copy the pack again") as error:
            use(rows[2]["audio"])
        assert "qtr verify" in str(error.value)
    for row in (0, 1, 3, 4, 5):
        assert len(rows[row]["audio"].pcm) == rows[row]["audio"].length


def test_a_column_can_be_cast_to_verify_and_back(pack):
    rows = load_dataset(str(pack), split="train")
    flip(pack / SHARD, offset_bytes(rows, 1))
    assert len(rows[1]["audio"].pcm) == rows[1]["audio"].length
    with pytest.raises(PackError, match="'train/0001' is damaged"):
        _ = rows.cast_column("audio", MmapAudio(verify=True))[1]["audio"].pcm
    with pytest.raises(PackError, match="'train/0001' is damaged"):
        _ = rows.cast_column("audio", MmapAudio(verify=True)).with_format("torch")[1]


def test_verifying_survives_map_save_and_streaming(pack, tmp_path):
    rows = load_dataset(str(pack), split="train", verify=True)
    rows.save_to_disk(tmp_path / "saved")
    flip(pack / SHARD, offset_bytes(rows, 0))
    with pytest.raises(PackError, match="'train/0000' is damaged"):
        _ = Dataset.load_from_disk(tmp_path / "saved")[0]["audio"].pcm
    with pytest.raises(PackError, match="'train/0000' is damaged"):
        rows.map(lambda row: {"loud": int(row["audio"].pcm.max())})
    streamed = next(iter(load_dataset(str(pack), split="train", streaming=True, verify=True)))
    with pytest.raises(PackError, match="'train/0000' is damaged"):
        _ = streamed["audio"].pcm


def test_altered_tables_are_refused_before_they_are_prepared(pack):
    (table,) = pack.glob("train-*.parquet")
    flip(table, table.stat().st_size // 2)
    with pytest.raises(PackError, match=rf"{table.name}: damaged"):
        load_dataset(str(pack), verify=True)


@pytest.mark.parametrize("name", ["shard_00000.index.npz", "pack.json"])
def test_an_altered_index_or_pack_json_proves_nothing(pack, name):
    rows = load_dataset(str(pack), split="train", verify=True)
    flip(pack / name, (pack / name).stat().st_size // 2)
    with pytest.raises(PackError, match=rf"{name}(: | is )damaged"):
        _ = rows[0]["audio"].pcm


def test_a_pack_opened_to_verify_finds_only_clips_that_are_whole(pack):
    flip(pack / SHARD, 2 * Pack.open(pack).find("train/0002").clip.offset)
    verified = pickle.loads(pickle.dumps(Pack.open(pack, verify=True)))
    assert len(verified.find("train/0001").clip.pcm) == verified.find("train/0001").clip.length
    with pytest.raises(PackError, match="'train/0002' is damaged"):
        _ = verified.find("train/0002").clip.pcm


def test_a_pack_made_anew_in_the_same_place_is_verified_against_its_own_checksums(pack, make_corpus, tmp_path):
    assert len(load_dataset(str(pack), split="train", verify=True)[0]["audio"].pcm)
    other = make_corpus(tmp_path / "other", first_seed=30)
    pack_corpus(other, pack, num_workers=1, quiet=True, overwrite=True)
    for row in load_dataset(str(pack), split="train", verify=True):
        np.testing.assert_array_equal(row["audio"].pcm, soundfile.read(other / f"{row['key']}.flac", dtype="int16")[0])


def test_a_reference_across_clips_or_into_the_header_is_an_error(pack):
    rows = load_dataset(str(pack), split="train", verify=True)
    first = rows[0]["audio"]
    for start, length in ((0, first.length + 100), (-first.offset, 10)):
        with pytest.raises(PackError, match="no clip holds samples"):
            _ = first.window(start, length).pcm


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bit_flipped_in_a_shard_gives_an_error_or_the_right_samples(pack, corpus, data):
    rows = load_dataset(str(pack), verify=True)
    size = (pack / SHARD).stat().st_size
    byte, bit = data.draw(st.integers(HEADER_BYTES, size - 1)), data.draw(st.integers(0, 7))
    flip(pack / SHARD, byte, bit)
    damaged = 0
    for row in (*rows["train"], *rows["test"]):
        try:
            pcm = row["audio"].pcm
        except PackError:
            damaged += 1
        else:
            np.testing.assert_array_equal(pcm, soundfile.read(corpus / f"{row['key']}.flac", dtype="int16")[0])
    assert damaged <= 1
    flip(pack / SHARD, byte, bit)
