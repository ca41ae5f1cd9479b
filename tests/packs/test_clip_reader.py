"""Reading by row number gives what reading row by row gives, whatever was done to the dataset."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets, load_dataset

from qwen_term_retrieval import ClipReader, MmapAudio, PackError, pack_corpus
from qwen_term_retrieval.audio.collate import PcmBuffers


@pytest.fixture
def rows(corpus, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", shard_bytes=40_000, num_workers=1, quiet=True)
    return load_dataset(str(tmp_path / "pack"), split="train")


VIEWS_OF_A_DATASET = {
    "as it is": lambda rows: rows,
    "shuffled": lambda rows: rows.shuffle(seed=3),
    "selected": lambda rows: rows.select([4, 1, 1, 0]),
    "shuffled twice": lambda rows: rows.shuffle(seed=1).select(range(1, 5)).shuffle(seed=2),
    "filtered": lambda rows: rows.filter(lambda row: row["duration"] > 0),
    "mapped": lambda rows: rows.map(lambda row: {"audio": row["audio"].trim(0.0, 0.05)}),
    "concatenated": lambda rows: concatenate_datasets([rows.shuffle(seed=1), rows]),
}


@pytest.mark.parametrize("change", VIEWS_OF_A_DATASET)
def test_a_batch_by_row_number_is_the_batch_of_those_rows(rows, change):
    changed = VIEWS_OF_A_DATASET[change](rows)
    reader = ClipReader(changed)
    assert len(reader) == len(changed)
    indices = np.random.default_rng(0).permutation(len(changed))
    clips = [changed[int(index)]["audio"].pcm for index in indices]
    assert reader.num_samples[indices].tolist() == [len(clip) for clip in clips]
    pcm_BS, num_samples_B = reader.gather(indices)
    assert pcm_BS.dtype == torch.int16
    assert num_samples_B.tolist() == [len(clip) for clip in clips]
    for view, row, clip in zip(reader.views(indices), pcm_BS.numpy(), clips, strict=True):
        np.testing.assert_array_equal(view, clip)
        assert np.shares_memory(view, clip)
        np.testing.assert_array_equal(row[: len(clip)], clip)
        assert not row[len(clip) :].any()


def test_memory_is_used_again(rows):
    reader, buffers = ClipReader(rows), PcmBuffers()
    pcm_BS, _ = reader.gather([0, 3, 5], buffers=buffers)
    assert torch.equal(pcm_BS, reader.gather([0, 3, 5])[0])
    address = pcm_BS.data_ptr()
    del pcm_BS
    assert reader.gather([5, 3, 0], buffers=buffers)[0].data_ptr() == address


def test_a_reader_pickles_without_samples(rows):
    reader = ClipReader(rows)
    reader.gather(range(len(rows)))
    pickled = pickle.dumps(reader)
    assert len(pickled) < 2000
    assert torch.equal(pickle.loads(pickled).gather([2, 1])[0], reader.gather([2, 1])[0])


def test_verified_rows_are_checked_here_too(rows, tmp_path):
    reader = ClipReader(rows.cast_column("audio", MmapAudio(verify=True)))
    assert torch.equal(reader.gather([0, 1])[0], ClipReader(rows).gather([0, 1])[0])
    clip = rows[1]["audio"]
    shard = next(path for path in sorted((tmp_path / "pack").glob("shard_*.dat")) if _holds(path, clip))
    with shard.open("r+b") as file:
        file.seek(2 * clip.offset + 10)
        byte = file.read(1)[0]
        file.seek(2 * clip.offset + 10)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(PackError, match="damaged"):
        reader.gather([0, 1])


def _holds(path, clip):
    from qwen_term_retrieval.packs.format.shards import ShardHeader

    return ShardHeader.read(path).uid == clip.shard


def test_audio_in_its_own_files_is_read_by_the_same_calls(corpus, rows):
    loose = load_dataset("term_audio", data_dir=str(corpus), packed=False, split="train").shuffle(seed=1)
    reader = ClipReader(loose)
    assert reader.num_samples.tolist() == [clip.length for clip in loose["audio"]]
    for view, clip in zip(reader.views([4, 0]), loose.select([4, 0])["audio"], strict=True):
        np.testing.assert_array_equal(view, clip.pcm)
    assert torch.equal(pickle.loads(pickle.dumps(reader)).gather([4, 0])[0], reader.gather([4, 0])[0])


def test_what_is_no_packed_audio_is_refused(rows):
    with pytest.raises(TypeError, match="'text' is Value"):
        ClipReader(rows, "text")
    with pytest.raises(TypeError, match="'sound' is None"):
        ClipReader(rows, "sound")
    without = rows.map(lambda row, index: {"audio": None if index else row["audio"]}, with_indices=True)
    with pytest.raises(ValueError, match="5 of 6 rows have no audio"):
        ClipReader(without)


def test_a_reference_past_the_end_of_its_shard_is_refused(rows):
    reference = rows.cast_column("audio", MmapAudio(decode=False))[0]["audio"]
    broken = Dataset.from_dict({"audio": [reference | {"length": 1 << 30}]})
    with pytest.raises(PackError, match="past the end"):
        ClipReader(broken.cast_column("audio", MmapAudio())).gather([0])
