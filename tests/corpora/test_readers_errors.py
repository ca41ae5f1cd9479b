"""What each layout refuses, and that it says where and what to do."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from pathlib import Path

import datasets
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.corpora.corpus import FORMATS, read_corpus
from qwen_term_retrieval.corpora.row_rules import COLUMNS
from qwen_term_retrieval.errors import CorpusError

CUT = {
    "id": "c1",
    "start": 1.5,
    "duration": 2.0,
    "channel": 0,
    "supervisions": [],
    "recording": {
        "id": "talk",
        "sources": [{"type": "file", "channels": [0], "source": "talk.wav"}],
        "sampling_rate": 16000,
        "num_samples": 160000,
        "duration": 10.0,
    },
    "type": "MonoCut",
}


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def with_source(**changes: object) -> dict:
    return CUT | {"recording": CUT["recording"] | {"sources": [CUT["recording"]["sources"][0] | changes]}}


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def make_kaldi(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name, content in files.items():
        (folder / name.replace("wav_scp", "wav.scp")).write_text(content, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (CUT | {"type": "MixedCut"}, "MixedCut, not a MonoCut or MultiCut; store the cuts' audio first"),
        (CUT | {"type": "PaddingCut"}, "PaddingCut, not a MonoCut"),
        (CUT | {"recording": None}, "no recording; features alone cannot be packed"),
        (CUT | {"recording": CUT["recording"] | {"transforms": [{"name": "Speed"}]}}, "augmentations still to be done"),
        (CUT | {"channel": 1}, "channels [1] are neither one nor all of those of one file"),
        (with_source(channels=[0, 1, 2]) | {"channel": [0, 1]}, "channels [0, 1] are neither one nor all"),
        (with_source(type="command", source="sph2pipe a.sph"), "its audio is of type 'command', not a file or URL"),
        (with_source(type="shar", source=""), "its audio is of type 'shar'"),
        (CUT | {"duration": None}, "no start or duration"),
        (CUT | {"duration": -1}, "a clip from 1.5 s to 0.5 s"),
        (CUT | {"channel": {"a": []}, "supervisions": 3}, "supervisions is '3'; give a list of objects"),
        (CUT | {"custom": 5}, "not a cut as Lhotse writes it"),
        (CUT | {"id": 7}, "key is '7'; give a string"),
        (CUT["recording"], "a recording or supervision, not a cut; make cuts of them"),
    ],
)
def test_a_cut_that_cannot_be_packed_as_it_is_says_why(cut, message, tmp_path):
    path = write_lines(tmp_path / "cuts.jsonl", CUT, cut)
    with pytest.raises(CorpusError, match=re.escape(message)) as error:
        list(read_corpus(path))
    assert f"{path}, line 2" in str(error.value)


def test_texts_of_a_cut_come_in_order_of_time_and_only_what_its_supervisions_agree_on_is_kept(tmp_path):
    supervisions = [
        {"id": "b", "recording_id": "talk", "start": 1.0, "duration": 1.0, "text": "world", "speaker": "x"},
        {"id": "a", "recording_id": "talk", "start": 0.0, "duration": 1.0, "text": "hello", "speaker": "y"},
    ]
    for supervision in supervisions:
        supervision["language"] = "en"
    cut = CUT | {"supervisions": supervisions, "custom": {"terms": ["world"], "dataloading_info": {"rank": 0}}}
    (utterance,) = read_corpus(write_lines(tmp_path / "cuts.jsonl", cut))
    assert (utterance.text, utterance.speaker, utterance.language) == ("hello world", None, "en")
    assert (utterance.start, utterance.end) == (1.5, 3.5)
    assert (utterance.terms, dict(utterance.extra)) == (("world",), {"dataloading_info": {"rank": 0}})


def test_a_cut_of_all_of_its_recording_is_the_whole_file(tmp_path):
    (utterance,) = read_corpus(write_lines(tmp_path / "cuts.jsonl", CUT | {"start": 0, "duration": 10.0}))
    assert (utterance.start, utterance.end) == (0.0, None)


@pytest.mark.parametrize(("kind", "channel", "expected"), [("MonoCut", 5, 1), ("MultiCut", [2, 5], None)])
def test_a_cut_is_the_channels_it_names(kind, channel, expected, tmp_path):
    cut = with_source(channels=[2, 5]) | {"type": kind, "channel": channel}
    (utterance,) = read_corpus(write_lines(tmp_path / "cuts.jsonl", cut))
    assert (utterance.audio, utterance.channel) == (tmp_path / "talk.wav", expected)


def test_a_cut_takes_the_file_of_its_channel(tmp_path):
    sources = [{"type": "file", "channels": [i], "source": f"channel{i}.wav"} for i in range(2)]
    cut = CUT | {"channel": 1, "recording": CUT["recording"] | {"sources": sources}}
    (utterance,) = read_corpus(write_lines(tmp_path / "cuts.jsonl", cut))
    assert (utterance.audio, utterance.channel) == (tmp_path / "channel1.wav", None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio_filepath": "a.wav", "shard_id": 3}, "shard_id marks a tarred NeMo manifest"),
        ({"audio": "a.wav"}, "no audio_filepath"),
        ({"audio_filepath": "a.wav", "offset": -1, "duration": 2}, "a clip from -1.0 s"),
        ({"audio_filepath": "a.wav", "offset": 1, "duration": 0}, "a clip from 1.0 s to 1.0 s"),
        ({"audio_filepath": "a.wav", "offset": "soon", "duration": 1}, "offset is 'soon'; give a number"),
        ({"audio_filepath": "a.wav", "offset": float("nan")}, "offset is 'nan'; give a number"),
    ],
)
def test_a_nemo_row_that_cannot_be_read_says_why(row, message, tmp_path):
    path = write_lines(tmp_path / "manifest.json", {"audio_filepath": "a.wav", "text": "x"}, row)
    with pytest.raises(CorpusError, match=re.escape(message)) as error:
        list(read_corpus(path))
    assert f"{path}, line 2" in str(error.value)


def test_a_nemo_row_without_an_offset_is_the_whole_file_and_one_with_is_named_by_its_milliseconds(tmp_path):
    rows = [
        {"audio_filepath": "a.wav", "duration": 3.1},
        {"audio_filepath": "a.wav", "offset": 0.25, "duration": 1.5},
        {"audio_filepath": "a.wav", "offset": 2},
    ]
    whole, segment, rest = read_corpus(write_lines(tmp_path / "manifest.jsonl", *rows))
    assert (whole.key, whole.start, whole.end) == ("a", 0.0, None)
    assert (segment.key, segment.start, segment.end) == ("a-00000250-00001750", 0.25, 1.75)
    assert (rest.key, rest.start, rest.end) == ("a-00002000-end", 2.0, None)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"wav_scp": "a sph2pipe -f wav a.sph |\n"}, "is a command, and none is run here. Write the recordings"),
        ({"wav_scp": "a raw_wav.1.ark:2093\n"}, "lies in a Kaldi archive; copy it to a file"),
        ({"wav_scp": "a\n"}, "an id without a path"),
        ({"wav_scp": "b b.wav\na a.wav\na c.wav\n"}, "wav.scp, line 3: 'a' stood in an earlier line"),
        ({"wav_scp": "a a.wav\n", "segments": "u1 b 0 1\n"}, "segments, line 1: recording 'b' is not in wav.scp"),
        ({"wav_scp": "a a.wav\n", "segments": "u1 a 0\n"}, "3 cells; a segment has an id"),
        ({"wav_scp": "a a.wav\n", "segments": "u1 a 2 1\n"}, "a clip from 2.0 s to 1.0 s"),
        ({"wav_scp": "a a.wav\n", "segments": "u1 a 0 1 A\n"}, "clip_channel is 'A'; give a number"),
    ],
)
def test_a_kaldi_folder_that_cannot_be_read_names_file_line_and_remedy(files, message, tmp_path):
    with pytest.raises(CorpusError, match=re.escape(message)):
        list(read_corpus(make_kaldi(tmp_path / "data", **files)))


def test_a_kaldi_folder_needs_no_more_than_wav_scp_and_its_splits_are_its_folders(tmp_path):
    make_kaldi(tmp_path / "data" / "dev", wav_scp="d1 /corpus/d1.wav\n")
    make_kaldi(tmp_path / "data" / "train", wav_scp="t1 /corpus/t1.wav\n", segments="t1-b t1 2 -1\nt1-a t1 0 2 1\n")
    utterances = list(read_corpus(tmp_path / "data"))
    assert [(u.key, u.split, u.start, u.end) for u in utterances] == [
        ("t1-b", "train", 2.0, None),
        ("t1-a", "train", 0.0, 2.0),
        ("d1", "validation", 0.0, None),
    ]
    assert {u.audio for u in utterances} == {Path("/corpus/t1.wav"), Path("/corpus/d1.wav")}
    assert [u.channel for u in utterances] == [None, 1, None]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.json": b"{}"}, "sample 'a': no member of audio beside the others"),
        ({"a.wav": b"", "a.flac": b""}, "sample 'a': two members of audio"),
        ({"a.wav": b"", "a.json": b"{"}, "sample 'a', .json: not JSON"),
        ({"a.wav": b"", "a.json": b"[]"}, "its .json holds list"),
        ({"a.wav": b"", "a.json": b'{"terms": "x"}'}, "give a list of strings"),
        ({"a.wav": b"", "a.txt": b"caf\xe9"}, "member 'a.txt': not UTF-8"),
    ],
)
def test_a_sample_of_a_tar_that_cannot_be_read_names_tar_and_sample(members, message, tmp_path):
    path = make_tar(tmp_path / "shard.tar", {"0.wav": b"", **members})
    with pytest.raises(CorpusError, match=re.escape(message)) as error:
        list(read_corpus(path))
    assert str(path) in str(error.value)


def test_members_of_a_tar_that_are_no_part_of_a_sample_are_passed_over_and_texts_and_classes_are_read(tmp_path):
    members = {"d/a.wav": b"RIFF", "d/a.txt": b" hello\n", "d/a.cls": b"3", "d/a.npy": b"...", ".DS_Store": b""}
    (utterance,) = read_corpus(make_tar(tmp_path / "dev-000.tar", members))
    assert (utterance.key, utterance.text, dict(utterance.extra)) == ("d/a", "hello", {"cls": "3"})
    assert utterance.split == "validation"
    assert utterance.audio.path.read_bytes()[utterance.audio.offset :][: utterance.audio.num_bytes] == b"RIFF"


def test_tars_that_cannot_be_read_by_slices_are_refused_with_the_remedy(tmp_path):
    plain = make_tar(tmp_path / "a.tar", {f"{i}.wav": bytes(700) for i in range(5)})
    raw = plain.read_bytes()
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(raw, mtime=0))
    with pytest.raises(CorpusError, match=r"b.tar.gz: a compressed tar cannot be read by slices; unpack it"):
        list(read_corpus(tmp_path / "b.tar.gz"))
    (tmp_path / "c.tar").write_bytes(gzip.compress(raw, mtime=0))
    with pytest.raises(CorpusError, match=r"c.tar: not readable as a plain tar"):
        list(read_corpus(tmp_path / "c.tar"))
    (tmp_path / "cut.tar").write_bytes(raw[: 512 + 1024 + 512 + 100])
    with pytest.raises(CorpusError, match=r"cut.tar: not readable as a plain tar \(unexpected end of data\)"):
        list(read_corpus(tmp_path / "cut.tar"))
    broken = bytearray(raw)
    broken[1536 + 3] ^= 1
    (tmp_path / "broken.tar").write_bytes(broken)
    with pytest.raises(CorpusError, match=r"broken.tar: no header at byte 1536"):
        list(read_corpus(tmp_path / "broken.tar"))
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no \.tar"):
        list(read_corpus(tmp_path / "none", format="webdataset"))


def test_a_dataset_without_one_column_of_audio_says_how_to_name_it():
    rows = {"text": ["x"], "a": [b"1"], "b": [b"2"]}
    with pytest.raises(CorpusError, match=r"2 columns of audio among \['a', 'b', 'text'\].*columns="):
        list(read_corpus(datasets.Dataset.from_dict(rows)))
    (utterance,) = read_corpus(datasets.Dataset.from_dict(rows), columns={"audio": "b"})
    assert (utterance.key, utterance.audio, dict(utterance.extra)) == ("train/00000001", b"2", {"a": b"1"})
    named = datasets.Dataset.from_dict({"file_name": ["a.wav"], "audio": ["b.wav"]}).cast_column(
        "audio", datasets.Audio()
    )
    (utterance,) = read_corpus(named)
    assert (utterance.key, dict(utterance.extra)) == ("b", {"file_name": "a.wav"})
    with pytest.raises(CorpusError, match="list is no corpus; give a path, a URL or a dataset"):
        list(read_corpus([]))
    with pytest.raises(CorpusError, match=r"dataset, row 2: the audio is null"):
        list(read_corpus(datasets.Dataset.from_dict({"audio": [b"1", None]})))


def test_splits_of_a_dataset_dict_are_normalised_and_come_train_first():
    both = datasets.DatasetDict({name: datasets.Dataset.from_dict({"audio": [b"1"]}) for name in ("dev", "train")})
    assert [(u.split, u.key) for u in read_corpus(both)] == [
        ("train", "train/00000001"),
        ("validation", "validation/00000001"),
    ]


def test_a_column_of_row_numbers_is_dropped_and_a_repeated_column_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(",audio,text\n0,a.wav,hello\n")
    (utterance,) = read_corpus(path)
    assert (utterance.text, dict(utterance.extra)) == ("hello", {})
    path.write_text("audio,text,text\na.wav,x,y\n")
    with pytest.raises(CorpusError, match=r"rows.csv: its header names 'text' twice"):
        list(read_corpus(path))


def test_what_cuts_say_besides_is_passed_through_whatever_its_name(tmp_path):
    cut = CUT | {"custom": {"transcript": "raw", "file_name": "x.sph"}}
    (utterance,) = read_corpus(write_lines(tmp_path / "cuts.jsonl", cut))
    assert (utterance.text, dict(utterance.extra)) == ("", {"transcript": "raw", "file_name": "x.sph"})


def test_columns_can_have_other_names(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("clip,raw,labels,text\na.wav,hello,x|y,unused\n")
    columns = {"audio": "clip", "text": "raw", "terms": "labels"}
    (utterance,) = read_corpus(path, columns=columns)
    assert (utterance.key, utterance.text, utterance.terms) == ("a", "hello", ("x", "y"))
    assert dict(utterance.extra) == {"text": "unused"}
    with pytest.raises(CorpusError, match=r"rows.csv, line 2: no column 'raws'; it has"):
        list(read_corpus(path, columns=columns | {"text": "raws"}))
    with pytest.raises(CorpusError, match=r"columns: 'txt' is none of audio, key"):
        read_corpus(path, columns={"txt": "raw"})


def test_the_key_rule_can_be_chosen(tmp_path):
    audio = "term_chunks/POD/POD0000000002/X.wav"
    path = write_lines(tmp_path / "rows.jsonl", {"audio": audio})
    keys = {rule: next(read_corpus(path, key_rule=rule)).key for rule in ("auto", "path", "term_chunks")}
    assert keys == {
        "auto": "POD/POD0000000002/X",
        "path": "term_chunks/POD/POD0000000002/X",
        "term_chunks": "POD/POD0000000002/X",
    }
    with pytest.raises(CorpusError, match=r"rows.jsonl, line 1: .* lies in no folder term_chunks"):
        list(read_corpus(write_lines(path, {"audio": "chunks/X.wav"}), key_rule="term_chunks"))
    with pytest.raises(CorpusError, match=r"unknown key rule 'stem'; known are auto, path, term_chunks"):
        read_corpus(path, key_rule="stem")


def test_a_format_is_forced_where_it_fits_and_an_unknown_one_lists_the_known(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", {"audio_filepath": "a.wav", "offset": 1.0, "duration": 1.0})
    (as_nemo,), (as_manifest,) = read_corpus(path), read_corpus(path, format="manifest")
    assert (as_nemo.start, as_manifest.start, as_manifest.extra["offset"]) == (1.0, 0.0, 1.0)
    with pytest.raises(CorpusError, match=re.escape(f"known are auto, {', '.join(FORMATS)}")):
        read_corpus(path, format="shar")
    with pytest.raises(CorpusError, match=r"rows.jsonl is a file; of a file, the formats manifest, nemo"):
        read_corpus(path, format="kaldi")
    with pytest.raises(CorpusError, match=r"is a folder; of a folder, the formats folder, audio, kaldi"):
        read_corpus(tmp_path, format="nemo")


def test_a_folder_of_what_was_unpacked_from_tars_is_read_as_a_folder(tmp_path):
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips" / "a.wav", [0.0] * 10, 16_000)
    make_tar(tmp_path / "clips.tar", {"a.wav": b""})
    assert [u.key for u in read_corpus(tmp_path)] == ["clips/a"]


def test_urls_that_lead_nowhere_say_so(tmp_path):
    with pytest.raises(CorpusError, match=r"nosuch://x: no such file system here: Protocol not known: nosuch"):
        read_corpus("nosuch://x")
    with pytest.raises(FileNotFoundError, match=r"corpus memory://nowhere does not exist"):
        read_corpus("memory://nowhere")
    make_tar(tmp_path / "a.tar", {"a.wav": b""})
    with pytest.raises(CorpusError, match=r"tars are read where they lie; download them"):
        list(read_corpus(f"local://{tmp_path}/a.tar"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"[" * 100_000, "nested too deeply"),
        ("a.jsonl", b'{"audio": ' + b"9" * 5000 + b"}", "line 1"),
        ("a.jsonl", rb'{"audio": "a.wav", "text": "\ud800"}', "line 1: 'utf-8' codec can't encode"),
        ("a.jsonl", b'{"audio": "a\\u0000.wav", "key": "k"}', "give the path of a file"),
        ("a.jsonl.gz", gzip.compress(b'{"audio": "a.wav"}\n', mtime=0)[:-4], "broken gzip"),
        ("a.jsonl.gz", b'{"audio": "a.wav"}\n', "broken gzip"),
        ("a.csv", b'audio,text\na.wav,"' + b"x" * 200_000, "is a quote not closed?"),
    ],
)
def test_hostile_manifests_are_errors_that_name_the_file(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=re.escape(message)) as error:
        list(read_corpus(tmp_path / name))
    assert str(tmp_path / name) in str(error.value)


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["..", "zip://::"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["path", "array", "x"]), inner),
    max_leaves=3,
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.sampled_from(
        [CUT, {"audio_filepath": "a.wav", "offset": 1.0}, {"audio": {"path": "a.wav"}, "terms": ["x"]}]
    ),
    changes=st.dictionaries(st.sampled_from([*CUT, *COLUMNS, "audio_filepath", "offset"]), CELLS, max_size=3),
)
def test_cells_of_any_kind_are_read_or_refused_with_the_line(row, changes, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", row | changes)
    refusal = ""
    try:
        list(read_corpus(path))
    except CorpusError as error:
        refusal = str(error)
    assert not refusal or "rows.jsonl, line 1" in refusal


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_manifests_and_tars_are_read_or_refused_and_never_crash(data, tmp_path):
    good = json.dumps({"audio": "a.wav", "text": "x", "terms": ["x"], "term_starts": [0.1], "term_ends": [0.2]})
    name = data.draw(st.sampled_from(["m.jsonl", "m.json", "m.csv", "m.tar", "cuts.jsonl", "m.jsonl.gz"]))
    content = {
        "m.jsonl": f"{good}\n{good}\n".encode(),
        "m.json": f"[{good}, {good}]".encode(),
        "m.csv": b"audio,text,terms\na.wav,hello,x|y\nb.wav,,\n",
        "cuts.jsonl": f"{json.dumps(CUT)}\n".encode(),
        "m.jsonl.gz": gzip.compress(f"{good}\n".encode(), mtime=0),
        "m.tar": make_tar(tmp_path / "x.tar", {"a.wav": b"1" * 600, "a.json": b'{"text": "x"}'}).read_bytes(),
    }[name]
    mutated = bytearray(content)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        mutated[place] = data.draw(st.integers(0, 255))
    path = tmp_path / name
    path.write_bytes(mutated[: data.draw(st.integers(1, len(content)))])
    refusal = ""
    try:
        list(read_corpus(path))
    except CorpusError as error:
        refusal = str(error)
    assert not refusal or name in refusal
