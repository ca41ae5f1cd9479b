from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset

from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.appending import append_corpus
from qwen_term_retrieval.packs.merging import merge_packs
from qwen_term_retrieval.packs.pack import Pack
from qwen_term_retrieval.packs.packing import pack_corpus

RATE = 16_000
QUIET = {"num_workers": 1, "quiet": True}


@pytest.fixture
def packs(noise, tmp_path) -> list[Path]:
    """Two packs; the first has two increments and two splits, the second a column of its own."""

    def clips(numbers, **fields):
        return [Utterance(f"u{i}", noise(i, 0.1), sampling_rate=RATE, **fields) for i in numbers]

    pack_corpus(clips(range(5)) + clips(range(5, 7), split="test"), tmp_path / "a", shard_bytes=10_000, **QUIET)
    append_corpus(clips(range(7, 9)), tmp_path / "a", **QUIET)
    pack_corpus(clips(range(9, 12), extra={"room": 1}), tmp_path / "b", **QUIET)
    return [tmp_path / "a", tmp_path / "b"]


def test_a_merged_pack_has_all_rows_splits_and_columns_and_finds_every_key(packs, noise, tmp_path):
    merged = merge_packs(packs, tmp_path / "merged", quiet=True)
    assert merged.verify() == []
    rows = load_dataset(str(tmp_path / "merged"))
    assert rows["train"]["key"][:] == [f"u{i}" for i in (0, 1, 2, 3, 4, 7, 8, 9, 10, 11)]
    assert rows["train"]["room"][:] == [None] * 7 + [1] * 3
    assert rows["test"]["key"][:] == ["u5", "u6"]
    assert len(merged) == 12
    for split in ("train", "test"):
        for number, row in enumerate(rows[split]):
            found = merged.find(row["key"])
            assert (found.split, found.row) == (split, number)
            np.testing.assert_array_equal(found.clip.pcm, noise(int(row["key"][1:]), 0.1))


def test_no_byte_is_copied_where_links_will_do(packs, tmp_path):
    merged = merge_packs(packs, tmp_path / "merged", quiet=True)
    inodes = {path.stat().st_ino for folder in packs for path in folder.iterdir()}
    for path in merged.folder.iterdir():
        assert (path.stat().st_ino in inodes) == (path.name not in ("pack.json", "README.md"))


def test_without_hard_links_files_are_copied_to_the_same_pack(packs, tmp_path, monkeypatch):
    merge_packs(packs, tmp_path / "linked", quiet=True)

    def refuse(*_):
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    merge_packs(packs, tmp_path / "copied", quiet=True)
    linked = {path.name: path.read_bytes() for path in (tmp_path / "linked").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "copied").iterdir()} == linked
    for path in (tmp_path / "copied").glob("shard_*"):
        assert path.stat().st_nlink == 1


def test_a_merged_pack_outlives_its_sources_and_can_be_appended_to_and_merged_again(packs, noise, tmp_path):
    merge_packs(packs, tmp_path / "merged", quiet=True)
    append_corpus([Utterance("new", noise(50, 0.1), sampling_rate=RATE)], tmp_path / "merged", **QUIET)
    pack_corpus([Utterance("other", noise(51, 0.1), sampling_rate=RATE)], tmp_path / "c", **QUIET)
    whole = merge_packs([tmp_path / "merged", tmp_path / "c"], tmp_path / "whole", quiet=True)
    for folder in (*packs, tmp_path / "c", tmp_path / "merged"):
        for path in folder.iterdir():
            path.unlink()
    assert whole.verify() == []
    assert len(whole) == 14
    np.testing.assert_array_equal(whole.find("new").clip.pcm, noise(50, 0.1))
    np.testing.assert_array_equal(whole.find("other").clip.pcm, noise(51, 0.1))


def test_the_uuid_of_a_merged_pack_follows_from_those_of_its_packs_and_their_order(packs, tmp_path):
    first = merge_packs(packs, tmp_path / "first", quiet=True)
    second = merge_packs(packs, tmp_path / "second", quiet=True)
    reverse = merge_packs(packs[::-1], tmp_path / "reverse", quiet=True)
    alone = merge_packs(packs[1:], tmp_path / "alone", quiet=True)
    assert first.uuid == second.uuid
    assert len({first.uuid, reverse.uuid, alone.uuid, Pack.open(packs[0]).uuid}) == 4
    assert alone.uuid == Pack.open(packs[1]).uuid


def test_packs_that_do_not_go_together_are_refused_with_the_reason(packs, noise, tmp_path):
    pack_corpus([Utterance("x", noise(1), sampling_rate=8000)], tmp_path / "slow", sampling_rate=8000, **QUIET)
    text = [Utterance("y", noise(1), sampling_rate=RATE, extra={"room": "hall"})]
    pack_corpus(text, tmp_path / "text", **QUIET)
    shared = [Utterance(key, noise(1), sampling_rate=RATE) for key in ("u3", "u8", "z")]
    pack_corpus(shared, tmp_path / "shared", **QUIET)
    for other, message in (("slow", "one sampling rate"), ("text", "room"), ("shared", "share 2 keys: 'u3', 'u8'")):
        with pytest.raises(PackError, match=message):
            merge_packs([*packs, tmp_path / other], tmp_path / "out", quiet=True)
    with pytest.raises(PackError, match="is not a pack"):
        merge_packs([tmp_path], tmp_path / "out", quiet=True)
    with pytest.raises(ValueError, match="no pack to merge"):
        merge_packs([], tmp_path / "out")
    with pytest.raises(FileExistsError, match="is a pack already"):
        merge_packs(packs, tmp_path / "slow", quiet=True)
    assert not (tmp_path / "out").exists()
