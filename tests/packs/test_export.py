from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset

from qwen_term_retrieval.corpora.corpus import read_corpus
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.packs.appending import append_corpus
from qwen_term_retrieval.packs.exporting import export_pack
from qwen_term_retrieval.packs.pack import Pack
from qwen_term_retrieval.packs.packing import pack_corpus
from tests.doubles.local_hub import LocalHub

RATE = 16_000
QUIET = {"num_workers": 1, "quiet": True}


@pytest.fixture
def pack(corpus, noise, tmp_path) -> Path:
    """A pack of two increments; keys that are no file names, extra columns, spans and nulls."""
    pack_corpus(corpus, tmp_path / "pack", shard_bytes=150_000, **QUIET)
    odd = [
        Utterance("../up", noise(90), sampling_rate=RATE, terms=("a", "b"), term_spans=((0.1, 0.25), None)),
        Utterance("train/0001.flac/x", noise(91), text="ŝalto", terms=("ŝalto",), sampling_rate=RATE),
        Utterance("a" * 300, noise(92), sampling_rate=RATE, extra={"room": 0.5, "seen": True}),
    ]
    append_corpus(odd, tmp_path / "pack", **QUIET)
    return tmp_path / "pack"


def rows_and_pcm(folder: Path) -> dict[str, list]:
    rows = {}
    for split, each in load_dataset(str(folder)).items():
        rows[split] = [{**row, "audio": row["audio"].pcm.tobytes()} for row in each]
    return rows


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_pack_exported_to_files_and_packed_again_has_the_same_samples_and_rows(suffix, pack, tmp_path):
    assert export_pack(pack, tmp_path / "out", format=suffix, quiet=True) == 15
    assert (tmp_path / "out" / "test" / "test" / f"0003.{suffix}").is_file()
    assert len(list((tmp_path / "out").rglob(f"*.{suffix}"))) == 15
    assert [u.key for u in read_corpus(tmp_path / "out")] == [
        key for split in ("train", "test") for key in load_dataset(str(pack), split=split)["key"]
    ]
    pack_corpus(tmp_path / "out", tmp_path / "again", **QUIET)
    assert rows_and_pcm(tmp_path / "again") == rows_and_pcm(pack)


def test_a_pack_exported_as_a_dataset_and_packed_again_has_the_same_samples_and_rows(pack, tmp_path):
    append_corpus([Utterance("x", np.ones(800, np.int16), split="extra", sampling_rate=RATE)], pack, **QUIET)
    export_pack(pack, tmp_path / "out", format="dataset", quiet=True)
    pack_corpus(tmp_path / "out", tmp_path / "again", **QUIET)
    assert rows_and_pcm(tmp_path / "again") == rows_and_pcm(pack)


PLAIN_READER = """
import io, sys
import datasets, soundfile
rows = datasets.load_dataset(sys.argv[1])
for split in rows:
    for row in rows[split].cast_column("audio", datasets.Audio(decode=False)):
        pcm, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")
        print(split, ascii(row["key"]), row["terms"], rate, pcm.tobytes().hex(), sep="|")
assert rows["train"].features["audio"] == datasets.Audio(16000)
assert "qwen_term_retrieval" not in sys.modules
"""


def test_a_pack_exported_as_a_dataset_loads_without_this_library(pack, tmp_path, hf_home):
    export_pack(pack, tmp_path / "out", format="dataset", quiet=True)
    reader = [sys.executable, "-c", PLAIN_READER, str(tmp_path / "out")]
    output = subprocess.run(reader, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    expected = [
        f"{split}|{row['key']!a}|{row['terms']}|16000|{row['audio'].pcm.tobytes().hex()}"
        for split, rows in load_dataset(str(pack)).items()
        for row in rows
    ]
    assert sorted(output.splitlines()) == sorted(expected)


def test_large_datasets_are_split_into_several_files(pack, tmp_path, monkeypatch):
    from qwen_term_retrieval.packs import exporting

    monkeypatch.setattr(exporting, "DATASET_FILE_BYTES", 20_000)
    monkeypatch.setattr(exporting, "_ROWS_PER_BATCH", 2)
    export_pack(pack, tmp_path / "out", format="dataset", quiet=True)
    assert len(list((tmp_path / "out" / "data").glob("train-*.parquet"))) > 2
    assert load_dataset(str(tmp_path / "out"), split="train").num_rows == 9


def test_what_is_there_is_not_written_over_unless_asked_and_only_if_it_is_an_export(pack, noise, tmp_path):
    export_pack(pack, tmp_path / "out", quiet=True)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_pack(pack, tmp_path / "out", quiet=True)
    export_pack(pack, tmp_path / "out", format="dataset", overwrite=True, quiet=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".qtr-export", "README.md", "data"]
    with pytest.raises(FileExistsError, match="exists and is not an export"):
        export_pack(pack, pack, overwrite=True, quiet=True)
    corpus = tmp_path / "recordings"
    corpus.mkdir()
    (corpus / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(FileExistsError, match="exists and is not an export"):
        export_pack(pack, corpus, overwrite=True, quiet=True)
    with pytest.raises(ValueError, match="one of wav, flac, dataset"):
        export_pack(pack, tmp_path / "new", format="mp3")
    with pytest.raises(PackError, match="is not a pack"):
        export_pack(tmp_path, tmp_path / "new")


def test_every_clip_has_a_file_that_any_system_can_tell_from_the_others(noise, tmp_path):
    keys = ["a/b", "A/B", "aux/c", "d/Nul.x", "e" + "\u3042" * 90, "f.FLAC/g"]
    pack_corpus([Utterance(key, noise(n), sampling_rate=RATE) for n, key in enumerate(keys)], tmp_path / "p", **QUIET)
    export_pack(tmp_path / "p", tmp_path / "out", quiet=True)
    files = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.flac")]
    assert sorted(files) == [*(f"train/_/{number:08d}.flac" for number in range(1, 6)), "train/a/b.flac"]
    assert [utterance.key for utterance in read_corpus(tmp_path / "out")] == keys


def test_a_column_that_json_cannot_hold_is_named(noise, tmp_path):
    pack_corpus([Utterance("x", noise(1), sampling_rate=RATE, extra={"raw": b"1"})], tmp_path / "pack", **QUIET)
    with pytest.raises(ValueError, match=r"key 'x'.*bytes.*format='dataset'"):
        export_pack(tmp_path / "pack", tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


PUSH = """
import sys
from qwen_term_retrieval import Pack
print(Pack.open(sys.argv[1]).push_to_hub("user/speech", private=True, revision=None))
"""
LOAD = """
import sys
from datasets import load_dataset
from huggingface_hub import snapshot_download
import qwen_term_retrieval
folder = snapshot_download("user/speech", repo_type="dataset")
pack = qwen_term_retrieval.Pack.open(folder, verify=True)
rows = load_dataset(folder, split="test")
print(len(pack), int(rows[2]["audio"].pcm.astype(int).sum()), pack.find(rows[2]["key"]).row)
"""


def test_a_pack_pushed_to_a_hub_is_loaded_from_there(pack, tmp_path):
    (pack / "notes of mine.txt").write_text("not part of the pack")
    with LocalHub() as hub:

        def run(script: str, *arguments: str) -> str:
            command = [sys.executable, "-c", script, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, env=hub.environment(tmp_path / "hf"))
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert "user/speech" in run(PUSH, str(pack))
        expected = {path.name: path.read_bytes() for path in pack.iterdir() if path.suffix != ".txt"}
        assert {k: v for k, v in hub.files("user/speech").items() if k != ".gitattributes"} == expected
        row = load_dataset(str(pack), split="test")[2]
        assert run(LOAD).split() == ["15", str(int(row["audio"].pcm.astype(int).sum())), "2"]


def test_a_pack_that_lacks_a_file_is_not_pushed(pack):
    opened = Pack.open(pack)
    (pack / "keys-00001.arrow").unlink()
    with pytest.raises(PackError, match=r"lacks keys-00001.arrow"):
        opened.push_to_hub("user/speech")


def test_metadata_of_an_export_is_one_json_object_a_clip(pack, tmp_path):
    export_pack(pack, tmp_path / "out", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert lines[1] == {
        "file_name": "train/train/0001.flac",
        "key": "train/0001",
        "text": "say term 1",
        "terms": ["term 1"],
        "term_starts": [pytest.approx(0.1)],
        "term_ends": [pytest.approx(0.2)],
        "speaker": "voice 1",
        "language": None,
        "seen": False,
        "room": None,
        "split": "train",
    }
