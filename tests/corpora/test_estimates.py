"""How many rows a corpus has is said before it is read: exactly, or from its beginning."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile

from qwen_term_retrieval.corpora import estimates
from qwen_term_retrieval.corpora.corpus import read_corpus
from qwen_term_retrieval.packs.exporting import export_pack
from qwen_term_retrieval.packs.packing import pack_corpus

NUM_ROWS = 3_000
ROWS = [{"audio_filepath": f"{i:05d}.wav", "text": "ü" * (i % 50), "duration": 1.0} for i in range(NUM_ROWS)]


def as_lines(folder: Path) -> Path:
    (folder / "train_manifest.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder / "train_manifest.json"


def as_compressed_lines(folder: Path) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines))
    return folder / "rows.jsonl.gz"


def as_a_list(folder: Path) -> Path:
    (folder / "rows.json").write_text(json.dumps(ROWS, indent=1, ensure_ascii=False))
    return folder / "rows.json"


def as_metadata_of_two_folders(folder: Path) -> Path:
    for half, name in ((ROWS[:1000], "train"), (ROWS[1000:], "test")):
        (folder / name).mkdir()
        cells = "".join(f"{row['audio_filepath']},{row['text']}\n" for row in half)
        (folder / name / "metadata.csv").write_text("file_name,text\n" + cells)
    return folder


def as_kaldi(folder: Path) -> Path:
    (folder / "wav.scp").write_text("talk talk.wav\n")
    (folder / "segments").write_text("".join(f"u{i} talk {i} {i + 1}\n" for i in range(NUM_ROWS)))
    return folder


def as_audio_alone(folder: Path) -> Path:
    for i in range(NUM_ROWS):
        (folder / f"{i:05d}.wav").touch()
    (folder / "notes.txt").touch()
    return folder


def as_tars(folder: Path) -> Path:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(160, np.int16), 16_000, format="WAV")
    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i in range(NUM_ROWS // 3):
                for suffix, content in (("json", b'{"text": "x"}'), ("wav", buffer.getvalue())):
                    member = tarfile.TarInfo(f"{shard}-{i:05d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def as_a_saved_dataset(folder: Path) -> Path:
    rows = datasets.Dataset.from_dict({"audio": [row["audio_filepath"] for row in ROWS]})
    rows.save_to_disk(folder / "saved")
    return folder / "saved"


LAYOUTS = [
    as_lines,
    as_compressed_lines,
    as_a_list,
    as_metadata_of_two_folders,
    as_kaldi,
    as_audio_alone,
    as_tars,
    as_a_saved_dataset,
]


@pytest.mark.parametrize("block_bytes", [1 << 20, 10_000])
@pytest.mark.parametrize("write", LAYOUTS)
def test_the_estimate_is_within_a_tenth_of_what_is_there(
    write: Callable[[Path], Path], block_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr(estimates, "_BLOCK_BYTES", block_bytes)
    corpus = read_corpus(write(tmp_path))
    assert corpus.estimated_rows() == pytest.approx(NUM_ROWS, rel=0.1)


def test_tables_of_parquet_say_it_themselves(corpus, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    export_pack(tmp_path / "pack", tmp_path / "out", format="dataset", quiet=True)
    assert read_corpus(tmp_path / "out").estimated_rows() == 12
    assert read_corpus(datasets.load_dataset(str(tmp_path / "out"))).estimated_rows() == 12


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", b"[{"),
        ("rows.json", b""),
        ("rows.jsonl.gz", b"no gzip"),
        ("rows.jsonl.gz", b""),
        ("rows.parquet", b"PAR1"),
        ("x.tar", b"\1" * 600),
    ],
)
def test_nothing_is_said_of_what_is_damaged(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert not estimates.estimated_rows("webdataset" if name == "x.tar" else "manifest", tmp_path / name)


def test_nothing_is_said_of_a_url():
    assert estimates.estimated_rows("folder", "s3://bucket/folder") is None
