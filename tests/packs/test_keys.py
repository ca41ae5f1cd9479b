from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.format.key_index import KeyTable, write_keys
from qwen_term_retrieval.packs.pack import Pack
from qwen_term_retrieval.packs.packing import pack_corpus


def write_numbered(path: Path, keys: list[str]) -> KeyTable:
    """An index whose columns say which key of the list a row was made of."""
    numbers = np.arange(len(keys))
    split = numbers % 2
    write_keys(
        path,
        pa.chunked_array([keys], pa.string()),
        splits=["train", "test"],
        split=split,
        row=numbers,
        shard=-numbers,
        offset=numbers + 1,
        length=numbers,
    )
    return KeyTable(path)


@given(keys=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), unique=True), data=st.data())
@settings(deadline=None, max_examples=50)
def test_every_key_is_found_where_it_was_put_and_no_other_is(tmp_path_factory, keys, data):
    table = write_numbered(tmp_path_factory.mktemp("keys") / "keys.arrow", keys)
    assert len(table) == len(keys)
    assert sorted(table.keys()) == sorted(keys)
    assert (np.diff(table.hashes.astype(object)) >= 0).all()
    for number, key in enumerate(keys):
        place = table.find(key)
        assert (place.key, place.split, place.row) == (key, ["train", "test"][number % 2], number)
        assert (place.shard, place.offset, place.length) == (-number, number + 1, number)
    absent = "no key is as long as this one"
    asked = data.draw(st.lists(st.sampled_from(keys) if keys else st.nothing()))
    assert table.known([absent, *asked]) == asked
    assert table.find(absent) is None


def test_keys_of_equal_hashes_are_told_apart(tmp_path, monkeypatch):
    from qwen_term_retrieval.packs.format import key_index as module

    monkeypatch.setattr(module, "key_hashes", lambda keys: np.full(len(keys), 7, np.uint64))
    table = write_numbered(tmp_path / "keys.arrow", ["a", "b", "c"])
    assert [table.find(key).row for key in "abc"] == [0, 1, 2]
    assert table.find("d") is None
    assert table.known(["d", "b"]) == ["b"]


def test_keys_that_two_indexes_share_are_named(tmp_path):
    first = write_numbered(tmp_path / "a.arrow", [f"k{i}" for i in range(100)])
    second = write_numbered(tmp_path / "b.arrow", [f"k{i}" for i in range(98, 200)])
    assert sorted(first.shared_with(second)) == sorted(second.shared_with(first)) == ["k98", "k99"]


def test_the_hashes_are_a_view_of_the_mapped_file(tmp_path):
    assert not write_numbered(tmp_path / "keys.arrow", ["a", "b"]).hashes.flags.owndata


def test_a_missing_or_damaged_index_is_an_error_of_ours(tmp_path):
    with pytest.raises(PackError, match=r"keys.arrow is missing"):
        KeyTable(tmp_path / "keys.arrow")
    for content in (b"", b"ARROW1\0\0 no index"):
        (tmp_path / "keys.arrow").write_bytes(content)
        with pytest.raises(PackError, match=r"keys.arrow: damaged key index"):
            KeyTable(tmp_path / "keys.arrow")


def test_a_pack_finds_clips_by_key_at_the_rows_that_load_dataset_gives(corpus, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", shard_bytes=60_000, num_workers=1, quiet=True)
    pack, rows = Pack.open(tmp_path / "pack"), load_dataset(str(tmp_path / "pack"))
    assert sorted(pack.keys()) == sorted(rows["train"]["key"][:] + rows["test"]["key"][:])
    assert len(pack) == 12
    for split in ("train", "test"):
        for number, row in enumerate(rows[split]):
            found = pickle.loads(pickle.dumps(pack)).find(row["key"])
            assert (found.key, found.split, found.row) == (row["key"], split, number)
            np.testing.assert_array_equal(found.clip.pcm, row["audio"].pcm)


def test_a_key_that_is_not_there_is_an_error_that_names_keys_like_it(corpus, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    with pytest.raises(PackError, match=r"no clip has the key 'train/001'; near it are 'train/0001'"):
        Pack.open(tmp_path / "pack").find("train/001")
    with pytest.raises(PackError, match=r"no clip has the key 'xyz'$"):
        Pack.open(tmp_path / "pack").find("xyz")


def test_a_key_that_is_no_utf8_any_more_is_a_damaged_index(tmp_path):
    path = tmp_path / "keys-00000.arrow"
    places = np.zeros(1, np.int64)
    keys = pa.chunked_array([["café-au-lait"]])
    write_keys(path, keys, splits=["train"], split=places, row=places, shard=places, offset=places, length=places)
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xbe\xbe"))
    with pytest.raises(PackError, match=r"keys-00000\.arrow: damaged"):
        list(KeyTable(path).keys())
