from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, Features, List, concatenate_datasets, load_dataset, load_from_disk
from datasets.table import embed_table_storage

from qwen_term_retrieval import Clip, MmapAudio, Pack, pack_corpus, register_pack, to_hf_audio
from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.format import open_shards as locations
from qwen_term_retrieval.packs.format.open_shards import MissingShardError


def pack_and_load(corpus: Path, out: Path) -> Dataset:
    pack_corpus(corpus, out, shard_bytes=80_000, num_workers=1, quiet=True)
    return load_dataset(str(out), split="train")


@pytest.fixture
def rows(corpus, tmp_path) -> Dataset:
    return pack_and_load(corpus, tmp_path / "pack")


def original(corpus: Path, row: dict) -> np.ndarray:
    return soundfile.read(corpus / f"{row['key']}.flac", dtype="int16")[0]


def assert_rows_are_original(rows: Dataset, corpus: Path) -> None:
    assert isinstance(rows.features["audio"], MmapAudio)
    for row in rows:
        np.testing.assert_array_equal(row["audio"].pcm, original(corpus, row))


def forget_open_packs() -> None:
    """What a new process knows: nothing."""
    locations._paths.clear()
    locations._samples.clear()


def test_a_clip_is_its_samples(rows, corpus):
    clip = rows[1]["audio"]
    expected = original(corpus, rows[1])
    assert clip.pcm.dtype == np.int16
    assert not clip.pcm.flags.owndata
    assert not clip.pcm.flags.writeable
    np.testing.assert_array_equal(clip["array"], expected.astype(np.float32) / 32768)
    assert clip["array"].dtype == np.float32
    assert clip["sampling_rate"] == 16_000
    assert clip.duration == pytest.approx(len(expected) / 16_000)
    np.testing.assert_array_equal(np.asarray(clip, np.int16), expected)
    assert dict(clip) == {"shard": clip.shard, "offset": clip.offset, "length": len(expected)}


def test_trim_is_a_window_that_copies_nothing(rows):
    clip = rows[1]["audio"]
    part = clip.trim(0.1, 0.25)
    np.testing.assert_array_equal(part.pcm, clip.pcm[1600:4000])
    assert np.shares_memory(part.pcm, clip.pcm)
    np.testing.assert_array_equal(part.trim(0.05, 0.1).pcm, clip.pcm[2400:3200])
    for start, end in ((-0.1, 0.2), (0.2, 0.2), (0.0, clip.duration + 0.1)):
        with pytest.raises(ValueError, match="cannot trim a clip of"):
            clip.trim(start, end)


def test_to_wav_writes_the_same_samples(rows, corpus, tmp_path):
    rows[2]["audio"].to_wav(tmp_path / "a.wav")
    np.testing.assert_array_equal(soundfile.read(tmp_path / "a.wav", dtype="int16")[0], original(corpus, rows[2]))


def test_a_reference_past_the_end_of_its_shard_is_an_error(rows):
    clip = rows[0]["audio"]
    with pytest.raises(PackError, match="reaches past the end of its shard"):
        _ = Clip(clip.shard, clip.offset, 10**9, 16_000).pcm


def test_clips_survive_map_filter_select_shuffle_and_sort(rows, corpus):
    assert_rows_are_original(rows.map(lambda row: {"audio": row["audio"], "new": 1}), corpus)
    assert_rows_are_original(rows.map(lambda batch: {"audio": batch["audio"]}, batched=True), corpus)
    assert_rows_are_original(rows.map(lambda row: {"loud": int(row["audio"].pcm.max())}, num_proc=2), corpus)
    assert_rows_are_original(rows.select([4, 1]).shuffle(seed=0), corpus)
    assert_rows_are_original(rows.sort("duration"), corpus)
    kept = rows.filter(lambda row: row["audio"].duration > 0.5)
    assert 0 < len(kept) < len(rows)
    assert_rows_are_original(kept, corpus)


def test_map_writes_references_and_a_mapped_trim_stays_a_window(rows):
    trimmed = rows.map(lambda row: {"audio": row["audio"].trim(0.1, 0.2)})
    np.testing.assert_array_equal(trimmed[3]["audio"].pcm, rows[3]["audio"].pcm[1600:3200])
    assert trimmed.data.nbytes < 2_000


def test_datasets_of_two_packs_concatenate(rows, corpus, make_corpus, tmp_path):
    other_corpus = make_corpus(tmp_path / "other", first_seed=100)
    other = pack_and_load(other_corpus, tmp_path / "other_pack")
    both = concatenate_datasets([rows, other])
    assert_rows_are_original(both.select(range(len(rows))), corpus)
    assert_rows_are_original(both.select(range(len(rows), len(both))), other_corpus)


def test_torch_and_numpy_formats_give_float32(rows):
    expected = rows[1]["audio"]["array"]
    tensor = rows.with_format("torch")[1]["audio"]
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), expected)
    array = rows.with_format("numpy")[1]["audio"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, expected)
    for kind in ("torch", "numpy"):
        assert [len(item) for item in rows.with_format(kind)[:4]["audio"]] == [c.length for c in rows[:4]["audio"]]


def test_lists_of_clips_and_missing_clips_decode(rows):
    clips = list(rows[:2]["audio"])
    dataset = Dataset.from_dict(
        {"pair": [clips], "maybe": [None]}, features=Features({"pair": List(MmapAudio()), "maybe": MmapAudio()})
    )
    np.testing.assert_array_equal(dataset[0]["pair"][1].pcm, clips[1].pcm)
    assert dataset[0]["maybe"] is None


def test_without_decoding_a_row_is_the_bare_reference(rows):
    bare = rows.cast_column("audio", MmapAudio(decode=False))[1]["audio"]
    assert bare == dict(rows[1]["audio"])
    assert "audio.offset" in rows.cast_column("audio", MmapAudio(decode=False)).flatten().column_names


def test_a_pickled_clip_is_a_reference(rows):
    clip = rows[1]["audio"]
    pickled = pickle.dumps(clip)
    assert len(pickled) < 200
    np.testing.assert_array_equal(pickle.loads(pickled).pcm, clip.pcm)


NEW_PROCESS = """
import json, sys
import numpy as np
import torch
from datasets import load_from_disk
import qwen_term_retrieval
from qwen_term_retrieval import pad_pcm

def collate(rows):
    pcm_BS, num_samples_B = pad_pcm([row["audio"] for row in rows])
    return [row["key"] for row in rows], pcm_BS.long().sum(1).tolist(), num_samples_B.tolist()

if __name__ == "__main__":
    rows = load_from_disk(sys.argv[1])
    for start in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(rows, 4, num_workers=1, collate_fn=collate, multiprocessing_context=start)
        print(json.dumps(list(loader)))
"""


def test_a_saved_dataset_opens_in_a_new_process_and_in_its_forked_and_spawned_workers(rows, corpus, tmp_path):
    rows.save_to_disk(tmp_path / "saved")
    assert sum(path.stat().st_size for path in (tmp_path / "saved").iterdir()) < 20_000
    script = tmp_path / "new_process.py"
    script.write_text(NEW_PROCESS)
    command = [sys.executable, str(script), str(tmp_path / "saved")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    clips = [original(corpus, row) for row in rows]
    for line in output.splitlines():
        keys, sums, lengths = zip(*json.loads(line), strict=True)
        assert list(chain(*keys)) == rows["key"][:]
        assert list(chain(*sums)) == [int(clip.sum(dtype=np.int64)) for clip in clips]
        assert list(chain(*lengths)) == [len(clip) for clip in clips]
    assert len(output.splitlines()) == 2


def test_a_moved_pack_is_an_error_that_says_how_to_point_at_it_and_then_works(rows, corpus, tmp_path):
    rows.save_to_disk(tmp_path / "saved")
    (tmp_path / "pack").rename(tmp_path / "elsewhere")
    forget_open_packs()
    saved = load_from_disk(tmp_path / "saved")
    with pytest.raises(MissingShardError, match=r"register_pack\(folder\)") as error:
        _ = saved[0]["audio"].pcm
    assert str(tmp_path / "pack" / "shard_00000.dat") in str(error.value)
    register_pack(tmp_path / "elsewhere")
    assert_rows_are_original(saved, corpus)
    forget_open_packs()
    assert_rows_are_original(load_from_disk(tmp_path / "saved"), corpus)


def test_another_pack_at_the_old_place_is_never_read_for_the_first(rows, corpus, make_corpus, tmp_path):
    shutil.move(tmp_path / "pack", tmp_path / "moved")
    pack_and_load(make_corpus(tmp_path / "other", first_seed=100), tmp_path / "pack")
    forget_open_packs()
    with pytest.raises(MissingShardError, match=r"holds another shard \([0-9a-f]{16} of pack"):
        _ = rows[0]["audio"].pcm
    Pack.open(tmp_path / "moved")
    assert_rows_are_original(rows, corpus)


def test_a_copy_stands_in_for_a_deleted_pack(rows, corpus, tmp_path):
    shutil.copytree(tmp_path / "pack", tmp_path / "copy")
    register_pack(tmp_path / "copy")
    shutil.rmtree(tmp_path / "pack")
    forget_open_packs()
    assert_rows_are_original(rows, corpus)


def test_a_shard_never_seen_on_this_machine_says_so():
    with pytest.raises(MissingShardError, match="No pack that holds it was ever opened here"):
        _ = Clip(12345, 2048, 10, 16_000).pcm


def test_references_are_refused_where_push_to_hub_embeds_and_kept_where_save_to_disk_does(rows):
    with pytest.raises(ValueError, match=r"references to a pack on this machine") as error:
        embed_table_storage(rows.data.table)
    for remedy in ("Pack.open(folder).push_to_hub", "to_hf_audio(dataset).push_to_hub", "qtr export"):
        assert remedy in str(error.value)
    assert embed_table_storage(rows.data.table, remote_files=False).equals(rows.data.table)


@pytest.mark.parametrize("format", ["wav", "flac"])
def test_to_hf_audio_gives_stock_audio_that_stands_alone(rows, corpus, format):
    converted = to_hf_audio(rows, format=format)
    assert converted.features["audio"] == Audio(sampling_rate=16_000)
    for row in converted.cast_column("audio", Audio(decode=False)):
        assert row["audio"]["path"].endswith(f".{format}")
        with soundfile.SoundFile(io.BytesIO(row["audio"]["bytes"])) as file:
            assert (file.format, file.subtype, file.samplerate) == (format.upper(), "PCM_16", 16_000)
            np.testing.assert_array_equal(file.read(dtype="int16"), original(corpus, row))


def test_to_hf_audio_takes_undecoded_columns_and_refuses_others(rows):
    bare = rows.cast_column("audio", MmapAudio(decode=False))
    assert to_hf_audio(bare).features["audio"] == Audio(sampling_rate=16_000)
    with pytest.raises(TypeError, match="not MmapAudio or FileAudio"):
        to_hf_audio(rows, column="text")
    with pytest.raises(ValueError, match=r"format='mp3'; it must be 'wav' or 'flac'"):
        to_hf_audio(rows, format="mp3")


def test_raw_audio_does_not_slip_into_a_column_of_references():
    for value in (np.zeros(5), {"array": np.zeros(5), "sampling_rate": 16_000}, "a.wav"):
        with pytest.raises(TypeError, match=r"pack the audio first with qwen_term_retrieval.pack_corpus"):
            MmapAudio().encode_example(value)
