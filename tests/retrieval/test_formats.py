"""Every format, read back by somebody else's reader, or by one that allows nothing beside the format's definition."""

import csv
import io
import itertools
import json
import re

import pandas as pd
import pytest

from qwen_term_retrieval.audio.sources import Recording
from qwen_term_retrieval.retrieval.formats.formats import FORMATS, format_named
from qwen_term_retrieval.retrieval.formats.tables import matches_to_pandas
from qwen_term_retrieval.retrieval.formats.writing import targets_of, write_answers
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.recordings.inputs import Opened
from qwen_term_retrieval.retrieval.recordings.searching import Heard

MATCHES = [
    TermMatch("atrial fibrillation", 0.9, 1.0, 2.125, 1, "en", probability=0.75),
    TermMatch('say "R&D" <b>,\n now --> then', 0.8, 1.5, 2.5, 2),
    TermMatch("東京", 0.7, 3661.002, 3661.5, 3),
    TermMatch("Wort", 0.6, 3661.5, 3661.5, 4, "de"),
]


def opened(name, channel=None):
    return Opened(Recording(name, channel), name, 4000.0)


def written(name, recordings=("talk.wav",), *, each_time=True, matches=MATCHES):
    text = []
    heard = [Heard(opened(each), 0.5, each_time, list(matches), None, 4000.0) for each in recordings]
    told = [step for own in heard for step in ([(own, [], False)] if each_time else []) + [(own, own.matches, True)]]
    assert write_answers(told, FORMATS[name], None, text.append) == len(recordings)
    return "".join(text)


@pytest.mark.parametrize(("name", "suffix"), [("srt", ".srt"), ("vtt", ".vtt")])
def test_subtitles_are_read_by_ffmpeg(name, suffix, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / f"talk{suffix}"
    path.write_text(written(name), encoding="utf-8")
    with av.open(path) as container:
        (stream,) = container.streams.subtitles
        cues = [
            (float(packet.pts * packet.time_base), float(packet.duration * packet.time_base), bytes(packet).decode())
            for packet in container.demux(stream)
            if packet.size
        ]
    assert [start for start, _, _ in cues] == pytest.approx([1.0, 1.5, 3661.002, 3661.5])
    assert [seconds for _, seconds, _ in cues] == pytest.approx([1.125, 1.0, 0.498, 0.001], abs=1e-6)
    quoted = 'say "R&D" <b>, now → then' if name == "srt" else 'say "R&amp;D" &lt;b&gt;, now → then'
    assert [text.strip() for _, _, text in cues] == ["atrial fibrillation", quoted, "東京", "Wort"]


def test_subtitles_of_nothing_are_whole_files():
    assert written("vtt", matches=()) == "WEBVTT\n"
    assert written("srt", matches=()) == ""


def test_csv_is_read_by_pandas():
    table = pd.read_csv(io.StringIO(written("csv", ["a.wav", "b,c.wav"])), keep_default_na=False)
    assert table["clip"].tolist() == ["a.wav"] * 4 + ["b,c.wav"] * 4
    assert table.term.tolist() == [match.term for match in MATCHES] * 2
    assert table.probability.tolist() == ["0.75", "", "", ""] * 2
    assert table.end.tolist() == [match.end for match in MATCHES] * 2
    assert all(len(row) == 8 for row in csv.reader(io.StringIO(written("csv"))))


def test_json_and_json_lines_say_the_same():
    (recording,) = json.loads(written("json"))
    rows = [json.loads(line) for line in written("jsonl").splitlines()]
    assert recording["clip"] == "talk.wav"
    assert recording["seconds"] == 4000.0
    assert [{"clip": "talk.wav", **match} for match in recording["matches"]] == rows
    assert rows[0] == {
        "clip": "talk.wav", "term": "atrial fibrillation", "score": 0.9, "probability": 0.75, "start": 1.0,
        "end": 2.125, "language": "en",
    }  # fmt: skip
    assert "probability" not in rows[1]


def test_labels_are_three_columns():
    rows = [line.split("\t") for line in written("audacity").splitlines()]
    assert [(float(start), float(end), text) for start, end, text in rows] == [
        (match.start, match.end, " ".join(match.term.split())) for match in MATCHES
    ]


def test_rttm_has_ten_fields_a_line():
    rows = [line.split(" ") for line in written("rttm", ["a talk.wav"]).splitlines()]
    assert {len(row) for row in rows} == {10}
    assert " ".join(rows[0]) == "SPEAKER a_talk.wav 1 1.000 1.125 <NA> <NA> atrial_fibrillation 0.7500 <NA>"


def read_textgrid(text):
    """Tiers of (low, high, text), as Praat's manual defines the long form."""
    number = r"\d+(?:\.\d+)?"
    head = re.match(
        rf'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = ({number})\ntiers\? <exists>\n'
        r"size = (\d+)\nitem \[\]:\n",
        text,
    )
    tiers, rest = [], text[head.end() :]
    for tier_number in range(1, int(head[2]) + 1):
        tier = re.match(
            rf'    item \[{tier_number}\]:\n        class = "IntervalTier"\n        name = "[^"]*"\n'
            rf"        xmin = 0\n        xmax = {head[1]}\n        intervals: size = (\d+)\n",
            rest,
        )
        rest, intervals = rest[tier.end() :], []
        for place in range(1, int(tier[1]) + 1):
            interval = re.match(
                rf"        intervals \[{place}\]:\n            xmin = ({number})\n            xmax = ({number})\n"
                r'            text = "((?:[^"]|"")*)"\n',
                rest,
            )
            rest = rest[interval.end() :]
            intervals.append((float(interval[1]), float(interval[2]), interval[3].replace('""', '"')))
        tiers.append(intervals)
    assert rest == ""
    return float(head[1]), tiers


def test_a_textgrid_covers_the_recording_without_gaps_or_overlaps():
    end, tiers = read_textgrid(written("textgrid"))
    assert end == 4000.0
    for tier in tiers:
        assert tier[0][0] == 0
        assert tier[-1][1] == end
        assert all(low < high for low, high, _ in tier)
        assert all(before[1] == after[0] for before, after in itertools.pairwise(tier))
    spoken = sorted(interval for tier in tiers for interval in tier if interval[2])
    assert [(low, text) for low, _, text in spoken] == [
        (match.start, " ".join(match.term.split())) for match in MATCHES
    ]
    assert len(tiers) == 2  # two terms overlap
    assert read_textgrid(written("textgrid", matches=()))[1] == [[(0.0, 4000.0, "")]]


def test_text_has_a_heading_and_a_line_a_match():
    assert written("text").splitlines()[0] == "talk.wav:"
    lines = written("text", each_time=False).splitlines()
    assert lines[0] == "talk.wav: 4 terms"
    assert lines[1].split() == ["atrial", "fibrillation", "(en)", "0.750", "1.00", "–", "2.12", "s"]


def test_a_folder_has_one_file_a_recording_and_none_in_place_of_another(tmp_path):
    recordings = [
        opened("a/talk.wav"),
        opened("b/talk.wav"),
        opened("b/talk.mp3"),
        opened("x.wav", 0),
        opened("x.wav", 1),
    ]
    targets = targets_of(recordings, FORMATS["srt"], f"{tmp_path}/out/")
    names = [targets[each].name for each in recordings]
    assert names == ["a_talk.wav.srt", "b_talk.wav.srt", "talk.mp3.srt", "x.left.srt", "x.right.srt"]
    told = [(heard, heard.matches, True) for heard in (Heard(each, None, False, MATCHES) for each in recordings)]
    assert write_answers(told, FORMATS["srt"], targets, print) == 5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert (tmp_path / "out" / "x.left.srt").read_text() == written("srt")
    with pytest.raises(FileExistsError, match=r"a_talk\.wav\.srt is there already.*--overwrite"):
        targets_of(recordings, FORMATS["srt"], tmp_path / "out")
    assert targets_of(recordings, FORMATS["srt"], tmp_path / "out", overwrite=True) == targets
    with pytest.raises(ValueError, match="give a folder, --out FOLDER/"):
        targets_of(recordings, FORMATS["textgrid"], tmp_path / "all.TextGrid")


def test_a_file_holds_what_the_terminal_would_show(tmp_path):
    recordings = [opened("a.wav"), opened("b.wav")]
    for name in ("text", "json", "jsonl", "csv", "rttm"):
        target = targets_of(recordings, FORMATS[name], tmp_path / name)
        told = [(heard, heard.matches, True) for heard in (Heard(each, 0.5, False, MATCHES) for each in recordings)]
        shown = []
        write_answers(told, FORMATS[name], target, print)
        write_answers(told, FORMATS[name], None, shown.append)
        assert target.read_text(encoding="utf-8") == "".join(shown)


def test_an_unknown_format_names_those_there_are():
    with pytest.raises(ValueError, match=r"none of text, json, .*did you mean 'srt'"):
        format_named("str")


def test_matches_become_a_table():
    table = matches_to_pandas([MATCHES, MATCHES[:1]], clips=["a.wav", "b.wav"])
    assert table["clip"].tolist() == ["a.wav"] * 4 + ["b.wav"]
    assert table.probability.isna().tolist() == [False, True, True, True, False]
    assert matches_to_pandas(MATCHES)["clip"].tolist() == [0] * 4
    assert matches_to_pandas([MATCHES[:1], MATCHES[1:2]])["clip"].tolist() == [0, 1]
    assert matches_to_pandas([]).columns.tolist() == [
        "clip",
        "term",
        "score",
        "probability",
        "start",
        "end",
        "language",
    ]
    with pytest.raises(ValueError, match="1 clips are named, and there are matches of 2"):
        matches_to_pandas([MATCHES, MATCHES], clips=["a.wav"])
