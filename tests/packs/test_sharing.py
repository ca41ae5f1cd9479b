"""One pack, read by many processes at once: no lock, no shared memory to set up, nothing to clean up."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Dataset, concatenate_datasets, load_dataset

from qwen_term_retrieval import pack_corpus, register_pack
from qwen_term_retrieval.packs.format import open_shards as locations

READER = """
import sys
import zlib
from datasets import load_from_disk
import qwen_term_retrieval

rows = load_from_disk(sys.argv[1])
clips = [row["audio"] for row in rows]
print("open", zlib.crc32(clips[0].pcm.data), flush=True)
sys.stdin.readline()
print(zlib.crc32(b"".join(clip.pcm.tobytes() for clip in clips)), flush=True)
"""


def checksum(corpus: Path, rows: Dataset) -> int:
    pcm = [soundfile.read(corpus / f"{key}.flac", dtype="int16")[0].tobytes() for key in rows["key"][:]]
    return zlib.crc32(b"".join(pcm))


@pytest.fixture
def pack(corpus, tmp_path) -> Path:
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    return tmp_path / "pack"


@pytest.fixture
def start_reader(tmp_path):
    """Starts a process that opens a saved dataset and waits for a line before it reads it to the end."""
    readers = []
    (tmp_path / "reader.py").write_text(READER)

    def start(saved: Path) -> subprocess.Popen:
        command = [sys.executable, str(tmp_path / "reader.py"), str(saved)]
        reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        readers.append(reader)
        return reader

    yield start
    for reader in readers:
        reader.kill()
        reader.wait()
        reader.stdin.close()
        reader.stdout.close()


def test_three_processes_read_one_pack_at_once_and_outlive_its_deletion(pack, corpus, tmp_path, start_reader):
    rows = load_dataset(str(pack), split="train")
    rows.save_to_disk(tmp_path / "saved")
    files = sorted(path.name for path in pack.iterdir())
    readers = [start_reader(tmp_path / "saved") for _ in range(3)]
    assert [reader.stdout.readline()[:4] for reader in readers] == ["open"] * 3
    assert sorted(path.name for path in pack.iterdir()) == files
    pcm = rows[0]["audio"].pcm.copy()
    shutil.rmtree(pack)
    for reader in readers:
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert int(reader.stdout.readline()) == checksum(corpus, rows)
    np.testing.assert_array_equal(rows[0]["audio"].pcm, pcm)


def test_a_read_only_pack_opens(pack, corpus):
    for path in pack.iterdir():
        path.chmod(0o444)
    pack.chmod(0o555)
    try:
        rows = load_dataset(str(pack), split="train", verify=True)
        assert len(rows[0]["audio"].pcm) == rows[0]["audio"].length
    finally:
        pack.chmod(0o755)


def test_rows_of_several_packs_in_one_dataset_survive_the_move_of_one_of_them(pack, corpus, make_corpus, tmp_path):
    other = make_corpus(tmp_path / "other", first_seed=50)
    pack_corpus(other, tmp_path / "other_pack", num_workers=1, quiet=True)
    parts = [load_dataset(str(folder), split="train") for folder in (pack, tmp_path / "other_pack")]
    both = concatenate_datasets(parts).shuffle(seed=1)
    (tmp_path / "other_pack").rename(tmp_path / "moved")
    locations._paths.clear()
    locations._samples.clear()
    with pytest.raises(locations.MissingShardError, match=r"register_pack\(folder\)"):
        _ = [row["audio"].pcm for row in both]
    register_pack(tmp_path / "moved")
    expected = sorted(soundfile.read(file)[0].sum() for root in (corpus, other) for file in (root / "train").iterdir())
    assert sorted(row["audio"]["array"].astype(np.float64).sum() for row in both) == pytest.approx(expected)
