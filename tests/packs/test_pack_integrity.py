from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.format import pack_json
from qwen_term_retrieval.packs.format.shards import HEADER_BYTES, ShardIndex
from qwen_term_retrieval.packs.pack import Pack
from qwen_term_retrieval.packs.packing import pack_corpus


@pytest.fixture
def pack(corpus, tmp_path) -> Path:
    pack_corpus(corpus, tmp_path / "pack", shard_bytes=150_000, num_workers=1, quiet=True)
    return tmp_path / "pack"


def damages(folder: Path) -> list[str]:
    try:
        return Pack.open(folder).verify()
    except PackError as error:
        return [str(error)]


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def test_a_fresh_pack_is_whole(pack):
    assert damages(pack) == []


def test_any_flipped_bit_of_any_file_is_found_and_the_file_named(pack):
    rng = random.Random(3)
    for path in sorted(pack.iterdir()):
        num_bits = path.stat().st_size * 8
        if path.name == "README.md":
            continue
        every = range(num_bits) if path.name == "pack.json" else rng.sample(range(num_bits), 40)
        for bit in rng.sample(every, min(len(every), 600)):
            flip(path, bit)
            found = damages(pack)
            assert any(path.name in line for line in found), (path, bit, found)
            flip(path, bit)
    assert damages(pack) == []


def test_every_byte_of_a_shard_header_and_of_padding_is_covered(pack):
    shard = pack / "shard_00000.dat"
    index = ShardIndex.load(pack / "shard_00000.index.npz")
    after_first_clip = int(index.offset[0] + index.length[0]) * 2
    for byte in (*range(0, 72), 2000, HEADER_BYTES - 1, after_first_clip):
        flip(shard, byte * 8)
        assert damages(pack)
        flip(shard, byte * 8)


def test_the_damaged_clip_is_named(pack):
    index = ShardIndex.load(pack / "shard_00000.index.npz")
    flip(pack / "shard_00000.dat", int(index.offset[2] + 5) * 16)
    assert damages(pack) == [f"{pack / 'shard_00000.dat'}: damaged; clips {index.keys[2]}"]


def test_missing_cut_and_foreign_files_are_found(pack, noise, make_corpus, tmp_path):
    pack_corpus(make_corpus(tmp_path / "other", first_seed=50), tmp_path / "other_pack", num_workers=1, quiet=True)
    shard = pack / "shard_00001.dat"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-64])
    assert "Was a copy cut short?" in damages(pack)[0]
    shutil.copy(tmp_path / "other_pack" / "shard_00000.dat", shard)
    assert "a shard of another pack" in damages(pack)[0]
    shard.unlink()
    assert damages(pack) == [f"{shard}: missing"]
    shard.write_bytes(whole)
    (pack / "train-00000.parquet").unlink()
    assert damages(pack) == [f"{pack / 'train-00000.parquet'}: missing"]


def test_a_folder_without_pack_json_is_no_pack(tmp_path):
    with pytest.raises(PackError, match=r"is not a pack: it has no pack.json. Make one with `qtr pack"):
        Pack.open(tmp_path)


def test_a_damaged_index_is_an_error_of_ours(tmp_path):
    for content in (b"", b"PK\x03\x04 no zip", b"\x93NUMPY"):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(PackError, match=r"a.npz: damaged index"):
            ShardIndex.load(tmp_path / "a.npz")
    with pytest.raises(PackError, match="is missing"):
        ShardIndex.load(tmp_path / "b.npz")


def test_an_index_with_pickled_objects_is_refused(tmp_path):
    keys = np.array(["a"], object)
    np.savez(tmp_path / "a.npz", key=keys, offset=np.zeros(1, int), length=np.zeros(1, int), crc32=np.zeros(1, int))
    with pytest.raises(PackError, match=r"a.npz: damaged index .*allow_pickle=False"):
        ShardIndex.load(tmp_path / "a.npz")


def test_open_with_verify_refuses_a_damaged_pack(pack):
    assert len(Pack.open(pack, verify=True)) == 12
    flip(pack / "keys-00000.arrow", 4000)
    with pytest.raises(PackError, match=r"keys-00000.arrow: damaged"):
        Pack.open(pack, verify=True)


def test_a_pack_of_another_layout_is_told_from_a_damaged_one(pack, monkeypatch):
    monkeypatch.setattr(pack_json, "FORMAT_VERSION", 2)
    with pytest.raises(PackError, match=r"pack format 1 .* format 2 .*Pack the corpus again"):
        Pack.open(pack)


def test_readme_may_be_edited(pack):
    (pack / "README.md").write_text("mine")
    assert damages(pack) == []


def test_inspect_shows_splits_columns_and_clips(pack):
    text = Pack.open(pack).inspect()
    for part in ("train", "6 clips", "16000 Hz", "speaker", "seen", "train/0001", "'say term 1'"):
        assert part in text
