from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from filelock import FileLock

from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.errors import CorpusError, PackError
from qwen_term_retrieval.packs import appending
from qwen_term_retrieval.packs.appending import append_corpus
from qwen_term_retrieval.packs.pack import Pack
from qwen_term_retrieval.packs.packing import pack_corpus
from qwen_term_retrieval.packs.writing.parts import UTTERANCES_PER_PART
from qwen_term_retrieval.storage import staging

RATE = 16_000
QUIET = {"num_workers": 1, "quiet": True}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def utterances(noise, first: int, count: int, **fields) -> list[Utterance]:
    return [Utterance(f"u{i}", noise(i, 0.1), sampling_rate=RATE, **fields) for i in range(first, first + count)]


@pytest.fixture
def grown(noise, tmp_path) -> Path:
    """A pack of three increments, one of which adds a split and a column."""
    pack_corpus(utterances(noise, 0, 5), tmp_path / "pack", shard_bytes=10_000, **QUIET)
    more = utterances(noise, 5, 3, split="test", extra={"room": 7}) + utterances(noise, 8, 2)
    append_corpus(more, tmp_path / "pack", shard_bytes=10_000, **QUIET)
    append_corpus(utterances(noise, 10, 2, extra={"room": 0.5}), tmp_path / "pack", **QUIET)
    return tmp_path / "pack"


def test_appended_rows_follow_the_old_ones_and_columns_of_one_side_are_null_on_the_other(grown, noise):
    rows = load_dataset(str(grown))
    assert rows["train"]["key"][:] == ["u0", "u1", "u2", "u3", "u4", "u8", "u9", "u10", "u11"]
    assert rows["test"]["key"][:] == ["u5", "u6", "u7"]
    assert rows["train"]["room"][:] == [None] * 7 + [0.5, 0.5]
    assert rows["test"]["room"][:] == [7.0] * 3
    for row in (*rows["train"], *rows["test"]):
        np.testing.assert_array_equal(row["audio"].pcm, noise(int(row["key"][1:]), 0.1))
    assert Pack.open(grown).verify() == []


def test_a_key_of_any_increment_is_found_at_its_row_of_the_whole_split(grown):
    pack, rows = Pack.open(grown), load_dataset(str(grown))
    assert len(pack) == len(list(pack.keys())) == 12
    for split in ("train", "test"):
        for number, row in enumerate(rows[split]):
            found = pack.find(row["key"])
            assert (found.split, found.row) == (split, number)
            np.testing.assert_array_equal(found.clip.pcm, row["audio"].pcm)


def test_appending_writes_no_file_again_but_the_contents_and_the_card(noise, tmp_path):
    pack_corpus(utterances(noise, 0, 5), tmp_path / "pack", **QUIET)
    before = {path.name: path.stat() for path in (tmp_path / "pack").iterdir()}
    summary = append_corpus(utterances(noise, 5, 2), tmp_path / "pack", **QUIET)
    assert (summary.num_clips, summary.num_shards) == (2, 1)
    for name, status in before.items():
        now = (tmp_path / "pack" / name).stat()
        same = (now.st_ino, now.st_mtime_ns, now.st_size) == (status.st_ino, status.st_mtime_ns, status.st_size)
        assert same == (name not in ("pack.json", "README.md"))
    assert "| train | 7 |" in (tmp_path / "pack" / "README.md").read_text()
    assert not (tmp_path / "pack.incomplete").exists()


def test_readers_that_have_the_pack_open_read_on(noise, tmp_path):
    pack_corpus(utterances(noise, 0, 5), tmp_path / "pack", **QUIET)
    pack, rows = Pack.open(tmp_path / "pack"), load_dataset(str(tmp_path / "pack"), split="train")
    append_corpus(utterances(noise, 5, 5), tmp_path / "pack", **QUIET)
    assert (len(pack), len(rows)) == (5, 5)
    np.testing.assert_array_equal(rows[4]["audio"].pcm, noise(4, 0.1))
    np.testing.assert_array_equal(pack.find("u4").clip.pcm, noise(4, 0.1))
    assert len(load_dataset(str(tmp_path / "pack"), split="train")) == 10


def test_a_key_that_the_pack_has_is_refused_before_anything_is_decoded_and_named_with_its_row(grown, noise):
    before = contents(grown)
    again = [
        *utterances(noise, 20, 3, source="new.csv"),
        Utterance("u6", b"never decoded", source="new.csv, row 4"),
        Utterance("u11", b"never decoded"),
    ]
    with pytest.raises(CorpusError, match=r"new.csv, row 4.* has a clip of this key already.*'u6', 'u11'") as error:
        append_corpus(again, grown, **QUIET)
    assert "u20" not in str(error.value)
    assert contents(grown) == before


def test_a_column_of_another_type_is_refused(grown, noise):
    before, read = contents(grown), []

    def rows():
        for utterance in utterances(noise, 30, 3 * UTTERANCES_PER_PART, extra={"room": "hall"}):
            read.append(utterance)
            yield utterance

    with pytest.raises(CorpusError, match=r"types that do not go together.*room.*the column types of the pack"):
        append_corpus(rows(), grown, **QUIET)
    assert len(read) <= 2 * UTTERANCES_PER_PART
    assert contents(grown) == before


def test_an_edited_card_stays(noise, tmp_path, caplog):
    pack_corpus(utterances(noise, 0, 2), tmp_path / "pack", **QUIET)
    (tmp_path / "pack" / "README.md").write_text("mine")
    append_corpus(utterances(noise, 2, 2), tmp_path / "pack", **QUIET)
    assert (tmp_path / "pack" / "README.md").read_text() == "mine"
    assert "was edited" in caplog.text


def test_two_processes_do_not_append_to_one_pack(grown, noise):
    before = contents(grown)
    (grown.parent / "pack.incomplete").mkdir()
    with (
        FileLock(grown.parent / "pack.incomplete" / "lock"),
        pytest.raises(PackError, match="another process is packing into"),
    ):
        append_corpus(utterances(noise, 30, 1), grown, **QUIET)
    assert contents(grown) == before


def test_what_is_no_pack_is_not_appended_to(noise, tmp_path):
    with pytest.raises(PackError, match="is not a pack"):
        append_corpus(utterances(noise, 0, 1), tmp_path, **QUIET)


class Crash(BaseException):
    pass


def crash_at(call: int, monkeypatch, module, name: str) -> None:
    """Let a function of a module fail at a certain call, before it does anything."""
    original, calls = getattr(module, name), iter(range(1, 1000))

    def crashing(*args, **kwargs):
        if next(calls) == call:
            raise Crash
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, crashing)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (appending, "_move_into_pack"),
        (appending, "sync_folder"),
        (appending, "_update_card"),
        (appending, "write_pack_json"),
        (staging, "_remove"),
    ],
)
def test_an_append_that_crashed_at_any_step_ends_in_the_same_pack(module, name, noise, tmp_path, monkeypatch):
    for folder in ("whole", "pack"):
        pack_corpus(utterances(noise, 0, 5), tmp_path / folder, **QUIET)
    more = utterances(noise, 5, 8)
    append_corpus(more, tmp_path / "whole", shard_bytes=10_000, **QUIET)
    with monkeypatch.context() as patched:
        crash_at(1, patched, module, name)
        with pytest.raises(Crash):
            append_corpus(more, tmp_path / "pack", shard_bytes=10_000, **QUIET)
    assert Pack.open(tmp_path / "pack").verify() == []
    summary = append_corpus(more, tmp_path / "pack", shard_bytes=10_000, **QUIET)
    assert (summary.num_clips, summary.num_shards > 1) == (8, True)
    assert contents(tmp_path / "pack") == contents(tmp_path / "whole")
    assert not (tmp_path / "pack.incomplete").exists()


def test_an_append_that_crashed_half_way_through_its_renames_gives_way_to_another_corpus(noise, tmp_path, monkeypatch):
    for folder in ("whole", "pack"):
        pack_corpus(utterances(noise, 0, 5), tmp_path / folder, **QUIET)
    with monkeypatch.context() as patched:
        crash_at(1, patched, appending, "sync_folder")
        with pytest.raises(Crash):
            append_corpus(utterances(noise, 5, 8), tmp_path / "pack", shard_bytes=10_000, **QUIET)
    assert len(Pack.open(tmp_path / "pack")) == 5
    for folder in ("whole", "pack"):
        append_corpus(utterances(noise, 40, 3), tmp_path / folder, **QUIET)
    assert contents(tmp_path / "pack") == contents(tmp_path / "whole")


def test_after_a_finished_append_that_did_not_clean_up_another_corpus_is_asked_to_come_again(
    noise, tmp_path, monkeypatch
):
    pack_corpus(utterances(noise, 0, 5), tmp_path / "pack", **QUIET)
    with monkeypatch.context() as patched:
        crash_at(1, patched, staging, "_remove")
        with pytest.raises(Crash):
            append_corpus(utterances(noise, 5, 3), tmp_path / "pack", **QUIET)
    with pytest.raises(PackError, match="run again"):
        append_corpus(utterances(noise, 40, 3), tmp_path / "pack", **QUIET)
    append_corpus(utterances(noise, 40, 3), tmp_path / "pack", **QUIET)
    assert len(Pack.open(tmp_path / "pack")) == 11


def test_files_that_a_deleted_staging_folder_orphaned_are_named_and_not_overwritten(noise, tmp_path, monkeypatch):
    pack_corpus(utterances(noise, 0, 5), tmp_path / "pack", **QUIET)
    with monkeypatch.context() as patched:
        crash_at(1, patched, appending, "write_pack_json")
        with pytest.raises(Crash):
            append_corpus(utterances(noise, 5, 3), tmp_path / "pack", **QUIET)
    shutil.rmtree(tmp_path / "pack.incomplete")
    orphan = (tmp_path / "pack" / "shard_00001.dat").read_bytes()
    with pytest.raises(PackError, match=r"holds shard_00001.dat, .*Delete these files and run again"):
        append_corpus(utterances(noise, 40, 3), tmp_path / "pack", **QUIET)
    assert (tmp_path / "pack" / "shard_00001.dat").read_bytes() == orphan
    assert len(Pack.open(tmp_path / "pack")) == 5


APPEND_SCRIPT = (
    "import sys; from qwen_term_retrieval.packs.appending import append_corpus; "
    "append_corpus(sys.argv[1], sys.argv[2], num_workers=2, shard_bytes=600_000, quiet=True)"
)


@pytest.mark.skipif(sys.platform != "linux", reason="sends SIGKILL")
def test_an_append_killed_at_random_instants_ends_in_the_same_pack(make_corpus, noise, tmp_path):
    corpus = make_corpus(tmp_path / "corpus", clips_per_split=2 * UTTERANCES_PER_PART, rate=44_100)
    for folder in ("whole", "pack"):
        pack_corpus(utterances(noise, 0, 5), tmp_path / folder, **QUIET)
    append_corpus(corpus, tmp_path / "whole", num_workers=1, shard_bytes=600_000, quiet=True)
    rng, num_kills = random.Random(3), 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", APPEND_SCRIPT, str(corpus), str(tmp_path / "pack")])
        deadline = time.monotonic() + 20
        while not (tmp_path / "pack.incomplete" / "parts").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.4))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        num_kills += 1
        assert Pack.open(tmp_path / "pack").verify() == []
    else:
        append_corpus(corpus, tmp_path / "pack", num_workers=1, shard_bytes=600_000, quiet=True)
    assert num_kills
    assert contents(tmp_path / "pack") == contents(tmp_path / "whole")
