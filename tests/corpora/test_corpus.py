from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from qwen_term_retrieval.corpora.corpus import SeenKeys, read_corpus, with_unique_keys
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.packs.packing import pack_corpus

ROWS = [
    {"file_name": "train/a.wav", "text": "has atrial fibrillation", "terms": ["atrial fibrillation"], "domain": "med"},
    {"file_name": "dev/b.wav", "text": "good morning", "terms": [], "domain": "none"},
    {"file_name": "test/c.wav", "text": "git and make", "terms": ["git", "make"], "domain": "it"},
]


def write_lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_metadata(folder: Path, suffix: str) -> None:
    folder.mkdir()
    path = folder / f"metadata{suffix}"
    if suffix == ".jsonl":
        write_lines(path, *ROWS)
    elif suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(ROWS[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(row | {"terms": "|".join(row["terms"])} for row in ROWS)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_an_audio_folder_reads_the_same_from_every_kind_of_metadata(suffix, tmp_path):
    write_metadata(tmp_path / "corpus", suffix)
    utterances = list(read_corpus(tmp_path / "corpus"))
    assert [(u.key, u.text, u.terms, u.split, dict(u.extra)) for u in utterances] == [
        ("train/a", "has atrial fibrillation", ("atrial fibrillation",), "train", {"domain": "med"}),
        ("dev/b", "good morning", (), "validation", {"domain": "none"}),
        ("test/c", "git and make", ("git", "make"), "test", {"domain": "it"}),
    ]
    assert utterances[0].audio == str(tmp_path / "corpus" / "train" / "a.wav")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_the_term_level_schema_is_read_as_earlier_systems_wrote_it(suffix, tmp_path):
    rows = [
        {
            "segment_id": "POD0000000002_S1",
            "term_chunk_audio": "/data/term_chunks/POD/POD0000000002/X1.wav",
            "term_chunk_text": "atrial fibrillation",
            "term_chunk_audio_ground_truth_terms": ["atrial fibrillation"],
            "term_start_time": 12.5,
            "term_end_time": 13.75,
        },
        {
            "segment_id": "POD0000000002_S2",
            "term_chunk_audio": "/data/term_chunks/POD/POD0000000002/X2.wav",
            "term_chunk_text": "well",
            "term_chunk_audio_ground_truth_terms": [],
            "is_no_term_chunk": True,
        },
    ]
    path = tmp_path / f"terms{suffix}"
    path.write_text(json.dumps(rows)) if suffix == ".json" else write_lines(path, *rows)
    first, second = read_corpus(path)
    assert (first.key, first.text, first.terms) == (
        "POD/POD0000000002/X1",
        "atrial fibrillation",
        ("atrial fibrillation",),
    )
    # Times within the recording that the chunk was cut from, not within the clip.
    assert first.term_spans is None
    assert dict(first.extra) == {"segment_id": "POD0000000002_S1", "term_start_time": 12.5, "term_end_time": 13.75}
    assert second.terms == ()


def test_a_split_comes_from_the_caller_then_the_row_then_the_folder_then_the_manifest(tmp_path):
    rows = [{"audio": "x/a.wav", "split": "dev"}, {"audio": "test/b.wav"}, {"audio": "x/c.wav"}]
    path = write_lines(tmp_path / "terms.jsonl", *rows)
    assert [u.split for u in read_corpus(path)] == ["validation", "test", "train"]
    assert {u.split for u in read_corpus(path, split="extra")} == {"extra"}
    of_name = write_lines(tmp_path / "validation.termaudio", {"audio": "x/c.wav"})
    assert [u.split for u in read_corpus(of_name)] == ["validation"]


def test_manifests_of_a_folder_come_train_first_whatever_their_names(tmp_path):
    for split in ("test", "train", "validation"):
        write_lines(tmp_path / f"{split}.termaudio", {"audio": f"{split}.wav"})
    assert [u.key for u in read_corpus(tmp_path)] == ["train", "validation", "test"]


def test_a_folder_of_bare_audio_gives_clips_without_text_in_sorted_order(tmp_path):
    for name in ("val/b.WAV", "train/z.flac", "train/a.ogg", "train/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [(u.key, u.split) for u in read_corpus(tmp_path)] == [
        ("train/a", "train"),
        ("train/z", "train"),
        ("val/b", "validation"),
    ]


def test_what_a_system_hides_among_the_recordings_is_no_recording(tmp_path, noise):
    (tmp_path / ".thumbnails").mkdir()
    soundfile.write(tmp_path / "a.wav", noise(0), 16_000)
    (tmp_path / "._a.wav").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".thumbnails" / "b.wav").write_bytes(b"")
    remote = fsspec.filesystem("memory")
    remote.put(str(tmp_path), "/hidden", recursive=True)
    for source in (tmp_path, "memory://hidden"):
        assert [utterance.key for utterance in read_corpus(source)] == ["a"]


def test_spans_and_speakers_are_read(tmp_path):
    row = {"audio": "a.wav", "terms": ["x", "y"], "term_starts": [0.5, None], "term_ends": [1, None], "speaker": "s"}
    (utterance,) = read_corpus(write_lines(tmp_path / "m.jsonl", row))
    assert utterance.term_spans == ((0.5, 1.0), None)
    assert (utterance.speaker, utterance.language) == ("s", None)


GOOD = {"audio": "a.wav", "terms": []}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"adio": "a.wav", "terms": []}, "no column 'audio', but one named 'adio'; rename"),
        ({"audio": "a.wav", "Terms": ["x"]}, "no column 'terms', but one named 'Terms'"),
        ({"wav": "a.wav"}, "no column of audio; it has ['wav']"),
        ({"audio": "a.wav", "file_name": "a.wav"}, "all mean 'audio'"),
        ({"audio": ""}, "give the path of a file"),
        ({"audio": "a.wav", "terms": "x"}, "give a list of strings"),
        ({"audio": "a.wav", "terms": ["x", " "]}, "terms[1] is ' '"),
        ({"audio": "a.wav", "terms": [3]}, "terms[0] is 3"),
        ({"audio": "a.wav", "terms": ["word " * 500]}, "terms[0] has 500 words"),
        ({"audio": "a.wav", "text": 5}, "text is '5'; give a string"),
        ({"audio": "a.wav", "terms": ["x"], "term_starts": [0.1]}, "one number a term (1 terms)"),
        ({"audio": "a.wav", "terms": ["x"], "term_starts": [0.5], "term_ends": [0.5]}, "0 ≤ start < end"),
        ({"audio": "a.wav", "terms": ["x"], "term_starts": [-1], "term_ends": [0.5]}, "0 ≤ start < end"),
        ({"audio": "a.wav", "terms": ["x"], "term_starts": ["a"], "term_ends": [0.5]}, "give numbers, in seconds"),
        ({"audio": "a.wav", "terms": ["x"], "is_no_term_chunk": True}, "is_no_term_chunk is set"),
        ({"audio": "a.wav", "split": "my split"}, "cannot name a split"),
        ({"audio": "a.wav", "key": "a\0b"}, "holds NUL"),
        (["a.wav"], "expected an object"),
    ],
)
def test_a_bad_row_is_an_error_that_names_file_line_and_remedy(row, message, tmp_path):
    path = write_lines(tmp_path / "manifest.jsonl", GOOD, row)
    with pytest.raises(CorpusError, match=re.escape(message)) as error:
        list(read_corpus(path))
    assert f"{path}, line 2" in str(error.value)


def test_a_line_that_is_not_utf8_or_not_json_is_named(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(b'{"audio": "a.wav"}\n{"audio": "caf\xe9.wav"}\n')
    with pytest.raises(CorpusError, match=r"manifest.jsonl, line 2: not UTF-8. Save the file as UTF-8"):
        list(read_corpus(path))
    path.write_text('{"audio": "a.wav"}\n\n{"audio"}\n')
    with pytest.raises(CorpusError, match=r"manifest.jsonl, line 3: not JSON"):
        list(read_corpus(path))


def test_json_lines_or_a_list_may_be_named_json_and_an_object_over_many_lines_is_an_error_with_a_hint(tmp_path):
    path = write_lines(tmp_path / "rows.json", GOOD, {"audio": "b.wav"})
    assert [u.key for u in read_corpus(path)] == ["a", "b"]
    path.write_text("\n" + json.dumps([GOOD, {"audio": "b.wav"}], indent=1))
    assert [u.key for u in read_corpus(path)] == ["a", "b"]
    path.write_text(json.dumps(GOOD, indent=1))
    with pytest.raises(CorpusError, match=r"rows.json, line 1: not JSON.*Write one a line, or a list"):
        list(read_corpus(path))


def test_tables_cut_wrong_are_errors(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("audio,text\na.wav,well, well\n")
    with pytest.raises(CorpusError, match=r"rows.csv, line 2: more cells than the header"):
        list(read_corpus(table))
    broken = tmp_path / "rows.parquet"
    broken.write_bytes(b"PAR1")
    with pytest.raises(CorpusError, match=r"rows.parquet: not readable as Parquet"):
        list(read_corpus(broken))


def test_sources_that_are_no_corpus_say_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_corpus(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no audio"):
        list(read_corpus(tmp_path / "empty"))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CorpusError, match=r"no format has the suffix '.txt'; known are"):
        list(read_corpus(tmp_path / "notes.txt"))
    write_metadata(tmp_path / "two", ".csv")
    (tmp_path / "two" / "metadata.jsonl").touch()
    with pytest.raises(CorpusError, match=r"metadata.csv and metadata.jsonl; keep the one"):
        read_corpus(tmp_path / "two")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "pack.json").touch()
    with pytest.raises(CorpusError, match="is a pack already"):
        read_corpus(tmp_path / "pack")


def test_a_repeated_key_is_an_error_at_its_second_row(tmp_path):
    path = write_lines(tmp_path / "m.jsonl", GOOD, {"audio": "b.wav"}, {"audio": "c.wav", "key": "a"})
    with pytest.raises(CorpusError, match=r"line 3: key 'a'.*an earlier row has the same key"):
        list(with_unique_keys(read_corpus(path)))


@given(st.lists(st.integers(0, 60).map(str)))
def test_repeated_keys_are_found_however_far_apart(keys):
    seen = SeenKeys()
    seen.MERGE_AT = 4
    assert [seen.add(key) for key in keys] == [key in keys[:i] for i, key in enumerate(keys)]


def test_an_utterance_names_itself_in_messages():
    assert Utterance("k", Path("a.wav"), source="m.csv, line 2").where == "m.csv, line 2: key 'k', file a.wav"


def test_a_manifest_that_a_folder_is_not_read_by_is_not_overlooked(corpus, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(corpus / "train", folder)
    (folder / "terms.jsonl").write_text('{"audio": "0000.flac", "text": "hello", "terms": ["hello"]}\n')
    (folder / "notes.json").write_text('{"recorded": "in May"}')
    with pytest.raises(CorpusError, match=r"terms\.jsonl describes audio.*format='audio'"):
        read_corpus(folder)
    assert all(not utterance.text for utterance in read_corpus(folder, format="audio"))
    (folder / "terms.jsonl").unlink()
    assert list(read_corpus(folder))


def test_a_split_that_is_no_name_is_refused_wherever_it_comes_from(corpus, tmp_path):
    with pytest.raises(CorpusError, match="cannot name a split"):
        read_corpus(corpus, split="../../evil")
    utterance = Utterance("a", np.ones(160, np.int16), sampling_rate=16_000, split="a b")
    with pytest.raises(CorpusError, match=r"utterance a: 'a b' cannot name a split"):
        pack_corpus([utterance], tmp_path / "pack", num_workers=1, quiet=True)
