"""Recordings of any length, however they are heard: the same answers, in flat memory, while the rest is read."""

import io
import logging
import tracemalloc

import datasets
import numpy as np
import pytest
import soundfile
import torch

from qwen_term_retrieval.audio.sources import Recording
from qwen_term_retrieval.errors import BadAudioError
from qwen_term_retrieval.retrieval.matches import BestOfEach
from qwen_term_retrieval.retrieval.recordings.inputs import Skipped, find_recordings, open_recordings
from qwen_term_retrieval.retrieval.recordings.searching import search_recordings
from qwen_term_retrieval.retrieval.retriever import TermRetriever

TERMS = ["atrial fibrillation", "pneumonia", "kubernetes", "saxophone", "linear algebra"]
RATE = 16_000
THRESHOLD = 0.7


@pytest.fixture(scope="module")
def retriever(listening_model):
    retriever = TermRetriever(listening_model)
    retriever.index(TERMS)
    return retriever


@pytest.fixture(scope="module")
def lecture(say):
    """Twenty seconds that say one term at many places, some close together: int16, and when each begins."""
    generator = np.random.default_rng(0)
    pieces, starts, now = [], [], 0
    for number in range(10):
        pause = generator.normal(0, 20, int(generator.uniform(0.6, 1.6) * RATE)).astype(np.int16)
        term = "saxophone" if number % 2 else TERMS[number % len(TERMS)]
        pcm = say(term, "en-us", generator.uniform(0.95, 1.15))
        now += len(pause)
        starts.append((term, now / RATE))
        pieces += [pause, pcm]
        now += len(pcm)
    return np.concatenate([*pieces, np.zeros(RATE, np.int16)]), starts


def told(matches):
    return [(match.term, round(match.start, 2), round(match.score, 3)) for match in matches]


def test_search_each_time_and_stream_give_the_same_answers_whatever_the_chunks(retriever, lecture, tmp_path):
    pcm, starts = lecture
    soundfile.write(tmp_path / "lecture.flac", pcm, RATE)
    each = list(retriever.each_time(tmp_path / "lecture.flac", threshold=THRESHOLD))
    assert [match.term for match in each].count("saxophone") == [term for term, _ in starts].count("saxophone")
    streams = [
        list(retriever.stream(np.split(pcm, range(block, len(pcm), block)), threshold=THRESHOLD))
        for block in (800, 70_001)
    ]
    for stream in streams:
        assert [match.term for match in stream] == [match.term for match in each]
        assert [m.score for m in stream] == pytest.approx([m.score for m in each], abs=1e-3)
        assert [m.start for m in stream] == [m.start for m in each]
    best = BestOfEach()
    best.add(each)
    surest = {match.term: match for match in best.best(50)}
    for match in retriever.search(tmp_path / "lecture.flac", threshold=THRESHOLD, top_k=50):
        assert match.score == pytest.approx(surest.pop(match.term).score, abs=1e-3)
    assert not surest


@pytest.mark.parametrize("seconds", [3.0, 7.99, 8.0, 8.01])
def test_clips_on_both_sides_of_a_chunk_are_answered_alike(retriever, lecture, seconds):
    clip = lecture[0][: int(seconds * RATE)]
    found = {match.term: match.score for match in retriever.search((clip, RATE), threshold=THRESHOLD, top_k=50)}
    said = {}
    for match in retriever.stream([clip], threshold=THRESHOLD):
        said[match.term] = max(match.score, said.get(match.term, -1))
    assert found == pytest.approx(said, abs=1e-3)


def sparse_wav(path, num_bytes, speech):
    """Speech, and then silence that takes no room on the disk."""
    soundfile.write(path, speech, RATE)
    raw = bytearray(path.read_bytes())
    raw[4:8] = raw[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    with path.open("r+b") as file:
        file.truncate(num_bytes)


def test_memory_does_not_grow_with_the_recording_and_answers_come_while_it_is_read(retriever, lecture, tmp_path):
    sparse_wav(tmp_path / "day.wav", 1 << 28, lecture[0])
    tracemalloc.start()
    try:
        heard = retriever.each_time(tmp_path / "day.wav", threshold=THRESHOLD)
        first = next(heard)
        after_first = tracemalloc.get_traced_memory()[1]
        rest = list(heard)
        (best,) = retriever.search_batch([tmp_path / "day.wav"], threshold=THRESHOLD, show_progress=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert after_first < 80 << 20
    assert peak < 80 << 20
    assert [first.term, *(match.term for match in rest)].count("saxophone") == 6
    assert {match.term for match in best} == {match.term for match in [first, *rest]}


@pytest.fixture(scope="module")
def folder(say, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "below").mkdir()
    pause = np.zeros(RATE // 2, np.int16)
    for name, term in [("a.wav", "saxophone"), ("below/B.WAV", "pneumonia"), (".hidden.wav", "kubernetes")]:
        soundfile.write(folder / name, np.concatenate([pause, say(term), pause]), RATE)
    left, right = (np.concatenate([pause, say(term), pause])[: 2 * RATE] for term in ("saxophone", "pneumonia"))
    size = min(len(left), len(right))
    soundfile.write(folder / "two.flac", np.stack([left[:size], right[:size]], axis=1), RATE)
    soundfile.write(folder / "opposite.flac", np.stack([left, -left], axis=1), RATE)
    (folder / "broken.wav").write_text("no sound")
    soundfile.write(folder / "nan.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    (folder / "notes.txt").write_text("not heard")
    return folder


def search(retriever, names, **settings):
    how = {name: settings.pop(name) for name in ("channel", "track") if name in settings}
    on_error, skipped = settings.get("on_error", "raise"), settings.get("skipped")
    recordings, _ = open_recordings(names, on_error=on_error, skipped=skipped, **how)
    told = search_recordings(retriever, recordings, threshold=THRESHOLD, show_progress=False, **settings)
    return {str(heard.recording): [match.term for match in heard.matches] for heard, _, at_end in told if at_end}


def test_folders_and_patterns_are_recordings_by_name(folder):
    names = ["a.wav", "below/B.WAV", "broken.wav", "nan.wav", "opposite.flac", "two.flac"]
    assert find_recordings([folder]) == [str(folder / name) for name in names]
    assert find_recordings([f"{folder}/**/*.WAV"]) == [str(folder / "below" / "B.WAV")]
    assert find_recordings([folder / "a.wav", folder / ".hidden.wav", folder / "a.wav"]) == [
        str(folder / "a.wav"),
        str(folder / ".hidden.wav"),
    ]
    with pytest.raises(FileNotFoundError, match="no file has a name like this"):
        find_recordings([f"{folder}/*.ogg"])


def test_bad_recordings_are_skipped_and_counted_and_the_others_heard(retriever, folder, caplog):
    skipped = Skipped()
    with caplog.at_level(logging.WARNING):
        found = search(retriever, [folder], on_error="skip", skipped=skipped)
    assert found[str(folder / "a.wav")] == ["saxophone"]
    assert found[str(folder / "below" / "B.WAV")] == ["pneumonia"]
    assert len(skipped) == 3
    for name, reason in [("broken.wav", "cannot read it"), ("nan.wav", "is NaN"), ("opposite.flac", "cancel out")]:
        assert any(f"{folder / name}: " in line and reason in line for line in skipped.reasons)
    with pytest.raises(BadAudioError, match=r"broken\.wav"):
        search(retriever, [folder])


def test_each_of_two_speakers_is_heard_in_a_channel_of_their_own(retriever, folder):
    name = str(folder / "two.flac")
    assert search(retriever, [name], channel="each") == {
        f"{name}, left": ["saxophone"],
        f"{name}, right": ["pneumonia"],
    }
    assert search(retriever, [name], channel="right") == {f"{name}, right": ["pneumonia"]}
    opposite = str(folder / "opposite.flac")
    assert search(retriever, [opposite], channel="left") == {f"{opposite}, left": ["saxophone"]}
    with pytest.raises(BadAudioError, match="has one channel, so none on the right"):
        search(retriever, [folder / "a.wav"], channel="right")


def test_a_link_a_quiet_and_a_telephone_recording_are_heard(retriever, say, tmp_path):
    pcm = np.concatenate([np.zeros(RATE // 2, np.int16), say("saxophone"), np.zeros(RATE // 2, np.int16)])
    soundfile.write(tmp_path / "quiet.wav", pcm / 32768 / 10 ** (50 / 20), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "48k.wav", np.repeat(pcm, 3), 48_000)
    (tmp_path / "link.wav").symlink_to(tmp_path / "quiet.wav")
    for name in ("quiet.wav", "48k.wav", "link.wav"):
        assert search(retriever, [tmp_path / name]) == {str(tmp_path / name): ["saxophone"]}


def test_a_recording_is_told_each_time_and_a_clip_once_unless_asked_otherwise(retriever, lecture, tmp_path):
    soundfile.write(tmp_path / "lecture.wav", lecture[0], RATE)
    names = [tmp_path / "lecture.wav"]
    assert search(retriever, names)[str(names[0])].count("saxophone") == 6
    assert search(retriever, names, times="best")[str(names[0])].count("saxophone") == 1


def test_many_clips_may_be_a_dataset_an_iterator_or_a_list(retriever, folder, say):
    files = [str(folder / "a.wav"), str(folder / "below" / "B.WAV")]
    rows = datasets.Dataset.from_dict({"audio": files, "text": ["", ""]})
    as_bytes = rows.map(lambda row: {"audio": {"bytes": open(row["audio"], "rb").read(), "path": None}})  # noqa: SIM115
    pcm = torch.from_numpy(say("saxophone"))
    for clips, expected in [
        (rows, ["saxophone", "pneumonia"]),
        (rows.cast_column("audio", datasets.Audio()), ["saxophone", "pneumonia"]),
        (as_bytes, ["saxophone", "pneumonia"]),
        (iter(files), ["saxophone", "pneumonia"]),
        ([io.BytesIO((folder / "a.wav").read_bytes()), (RATE, pcm.numpy()), (pcm, RATE)], ["saxophone"] * 3),
        ([Recording(folder / "two.flac", channel=1)], ["pneumonia"]),
        ([], []),
    ]:
        found = retriever.search_batch(clips, top_k=1, threshold=THRESHOLD, show_progress=False)
        assert [matches[0].term for matches in found] == expected


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ("a.wav", "expected a list of clips, not str"),
        (np.zeros(100, np.int16), "not ndarray"),
        ((np.zeros(100, np.int16), RATE), "not a pair of array and rate"),
        (torch.zeros(100), "not Tensor"),
        ({"audio": "a.wav"}, "not dict"),
        (io.BytesIO(b"x"), "not BytesIO"),
        (datasets.DatasetDict({"test": datasets.Dataset.from_dict({"audio": ["a"]})}), r"several splits \(test\)"),
        (datasets.Dataset.from_dict({"speech": ["a.wav"]}), "no column 'audio' but 'speech'"),
    ],
)
def test_what_is_no_list_of_clips_is_refused_in_a_line(retriever, clips, message):
    with pytest.raises(ValueError, match=message):
        retriever.search_batch(clips)


def test_a_device_or_dtype_that_there_is_not_is_refused_in_a_line(listening_model):
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device='cuda', but PyTorch .* here; give cpu"):
            TermRetriever.from_pretrained(listening_model, device="cuda")
    with pytest.raises(ValueError, match="device='gpu' is no device"):
        TermRetriever.from_pretrained(listening_model, device="gpu")
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, not 'int8'"):
        TermRetriever.from_pretrained(listening_model, dtype="int8")


def test_half_precision_finds_the_same_terms(listening_model, lecture, tmp_path):
    listening_model.save_pretrained(tmp_path / "model")
    half = TermRetriever.from_pretrained(tmp_path / "model", device="cpu", dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    half.index(TERMS)
    clip = (lecture[0][: 7 * RATE], RATE)
    whole = TermRetriever.from_pretrained(listening_model)
    whole.index(TERMS)
    found, expected = (each.search(clip, threshold=THRESHOLD) for each in (half, whole))
    assert {match.term for match in found} == {match.term for match in expected}
