"""Disks that fill up, folders that cannot be written to, power cuts, and packs that go away while they are read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset

from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs import packing
from qwen_term_retrieval.packs.pack import Pack
from qwen_term_retrieval.packs.packing import pack_corpus
from qwen_term_retrieval.packs.writing import increment
from qwen_term_retrieval.packs.writing.parts import UTTERANCES_PER_PART
from qwen_term_retrieval.packs.writing.sealing import ShardSealer
from qwen_term_retrieval.storage import staging

RATE = 16_000
QUIET = {"num_workers": 1, "quiet": True}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(script: str, *arguments: object, launcher: tuple[str, ...] = ()) -> str:
    command = [*launcher, sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def can_mount(tmp_path: Path) -> bool:
    """Whether this user may mount a file system in a name space of their own."""
    try:
        done = subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True)
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.fixture
def in_a_name_space(tmp_path) -> tuple[str, ...]:
    if not can_mount(tmp_path):
        pytest.skip("needs `unshare -Urm` and a tmpfs")
    return ("unshare", "-Urm")


LIMITED = """
import resource, sys
from qwen_term_retrieval import PackError, pack_corpus
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    pack_corpus(sys.argv[1], sys.argv[2], num_workers=int(sys.argv[3]), quiet=True)
except PackError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_file_over_the_size_allowed_is_an_error_with_a_remedy_and_packing_goes_on(num_workers, corpus, tmp_path):
    said = run(LIMITED, corpus, tmp_path / "pack", num_workers)
    assert "the disk is full, or a file grew over the size allowed" in said
    assert "run again" in said
    assert not (tmp_path / "pack").exists()
    pack_corpus(corpus, tmp_path / "pack", **QUIET)
    pack_corpus(corpus, tmp_path / "whole", **QUIET)
    assert contents(tmp_path / "pack") == contents(tmp_path / "whole")


FULL_DISK = """
import subprocess, sys
from qwen_term_retrieval import PackError, pack_corpus
corpus, disk = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", disk], check=True)
try:
    pack_corpus(corpus, disk + "/pack", num_workers=1, shard_bytes=100_000, quiet=True)
except PackError as error:
    print(error)
subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
pack_corpus(corpus, disk + "/pack", num_workers=1, shard_bytes=100_000, quiet=True)
subprocess.run(["cp", "-r", disk + "/pack", disk + "/../../copied"], check=True)
"""


def test_a_full_disk_is_an_error_and_packing_goes_on_when_there_is_room(make_corpus, in_a_name_space, tmp_path):
    corpus = make_corpus(tmp_path / "corpus", clips_per_split=20)
    (tmp_path / "mounts" / "disk").mkdir(parents=True)
    said = run(FULL_DISK, corpus, tmp_path / "mounts" / "disk", launcher=in_a_name_space)
    assert "the disk is full" in said
    assert "No space left on device" in said
    pack_corpus(corpus, tmp_path / "whole", shard_bytes=100_000, **QUIET)
    assert contents(tmp_path / "copied") == contents(tmp_path / "whole")


READ_ONLY = """
import subprocess, sys
from qwen_term_retrieval import pack_corpus
from qwen_term_retrieval.packs.appending import append_corpus
corpus, pack = sys.argv[1:]
subprocess.run(["mount", "--bind", "-o", "ro", pack + "/..", pack + "/.."], check=True)
for write, out in ((pack_corpus, pack + "2"), (append_corpus, pack)):
    try:
        write(corpus, out, num_workers=1, quiet=True)
    except OSError as error:
        print(error)
"""


def test_a_folder_that_cannot_be_written_to_is_named(corpus, in_a_name_space, tmp_path):
    pack_corpus(corpus, tmp_path / "packs" / "pack", **QUIET)
    before = contents(tmp_path / "packs" / "pack")
    said = run(READ_ONLY, corpus, tmp_path / "packs" / "pack", launcher=in_a_name_space).splitlines()
    assert "Read-only file system" in said[0]
    assert str(tmp_path / "packs" / "pack2.incomplete") in said[0]
    assert "Read-only file system" in said[1]
    assert contents(tmp_path / "packs" / "pack") == before


class Crash(BaseException):
    pass


def crash(*_, **__):
    raise Crash


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def one_bit_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", ["pcm", "arrow"])
@pytest.mark.parametrize("spoil", [cut_short, emptied, one_bit_flipped])
def test_parts_that_a_power_cut_spoilt_are_made_again(spoil, suffix, make_corpus, tmp_path, monkeypatch):
    corpus = make_corpus(tmp_path / "corpus", clips_per_split=UTTERANCES_PER_PART)
    pack_corpus(corpus, tmp_path / "whole", **QUIET)
    with monkeypatch.context() as patched:
        patched.setattr(ShardSealer, "close", crash)
        with pytest.raises(Crash):
            pack_corpus(corpus, tmp_path / "pack", **QUIET)
    kept, spoilt = (tmp_path / "pack.incomplete" / "parts" / f"part_{number:07d}" for number in range(2))
    made = kept.with_suffix(".pcm").stat().st_mtime_ns
    spoil(spoilt.with_suffix(f".{suffix}"))
    with monkeypatch.context() as patched:
        patched.setattr(ShardSealer, "close", crash)
        with pytest.raises(Crash):
            pack_corpus(corpus, tmp_path / "pack", **QUIET)
    assert kept.with_suffix(".pcm").stat().st_mtime_ns == made
    pack_corpus(corpus, tmp_path / "pack", **QUIET)
    assert contents(tmp_path / "pack") == contents(tmp_path / "whole")


def test_a_shard_header_that_a_power_cut_spoilt_is_written_again(corpus, tmp_path, monkeypatch):
    pack_corpus(corpus, tmp_path / "whole", **QUIET)
    with monkeypatch.context() as patched:
        patched.setattr(increment, "write_tables", crash)
        with pytest.raises(Crash):
            pack_corpus(corpus, tmp_path / "pack", **QUIET)
    with (tmp_path / "pack.incomplete" / "pack" / "shard_00000.dat").open("r+b") as file:
        file.seek(512)
        file.write(b"torn")
    pack_corpus(corpus, tmp_path / "pack", **QUIET)
    assert contents(tmp_path / "pack") == contents(tmp_path / "whole")


def test_a_pack_that_is_replaced_stays_until_the_new_one_is_whole(corpus, noise, tmp_path, monkeypatch):
    pack_corpus(corpus, tmp_path / "pack", **QUIET)
    before = contents(tmp_path / "pack")
    with monkeypatch.context() as patched:
        patched.setattr(packing, "publish", crash)
        with pytest.raises(Crash):
            pack_corpus([Utterance("u", noise(1), sampling_rate=RATE)], tmp_path / "pack", overwrite=True, **QUIET)
    assert contents(tmp_path / "pack") == before


def test_nothing_stays_of_a_pack_that_was_replaced_by_a_run_that_was_killed_then(noise, tmp_path, monkeypatch):
    def pack(seed: int) -> None:
        pack_corpus([Utterance("u", noise(seed), sampling_rate=RATE)], tmp_path / "pack", overwrite=True, **QUIET)

    pack(1)
    with monkeypatch.context() as patched:
        patched.setattr(staging, "sync_folder", crash)
        with pytest.raises(Crash):
            pack(2)
    pack(3)
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]
    np.testing.assert_array_equal(Pack.open(tmp_path / "pack").find("u").clip.pcm, noise(3))


def test_clips_of_a_pack_deleted_while_open_are_still_read_and_what_was_not_open_is_an_error(corpus, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", **QUIET)
    pack, untouched = Pack.open(tmp_path / "pack"), Pack.open(tmp_path / "pack")
    rows = load_dataset(str(tmp_path / "pack"), split="train")
    expected = rows[3]["audio"].pcm.copy()
    assert pack.find("train/0003").row == 3
    shutil.rmtree(tmp_path / "pack")
    np.testing.assert_array_equal(rows[3]["audio"].pcm, expected)
    np.testing.assert_array_equal(pack.find("train/0003").clip.pcm, expected)
    with pytest.raises(PackError, match=r"keys-00000.arrow is missing"):
        untouched.find("train/0003")
    assert all("missing" in line or "no pack.json" in line for line in pack.verify())


def test_a_pack_moved_while_open_is_read_on_and_found_again_once_it_is_opened_there(corpus, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", **QUIET)
    rows = load_dataset(str(tmp_path / "pack"), split="train")
    expected = rows[3]["audio"].pcm
    (tmp_path / "pack").rename(tmp_path / "moved")
    np.testing.assert_array_equal(rows[3]["audio"].pcm, expected)
    assert Pack.open(tmp_path / "moved").verify() == []
    np.testing.assert_array_equal(Pack.open(tmp_path / "moved").find("train/0003").clip.pcm, expected)
