from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from qwen_term_retrieval.corpora.corpus import read_corpus
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.errors import CorpusError, PackError
from qwen_term_retrieval.packs import packing
from qwen_term_retrieval.packs.format.shards import ShardIndex
from qwen_term_retrieval.packs.pack import Pack
from qwen_term_retrieval.packs.packing import pack_corpus
from qwen_term_retrieval.packs.writing import increment
from qwen_term_retrieval.packs.writing.parts import UTTERANCES_PER_PART

RATE = 16_000
QUIET = {"num_workers": 1, "quiet": True}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows_of(folder: Path, split: str = "train") -> list[dict]:
    tables = Pack.open(folder).tables(split)
    return [row for table in tables for row in parquet.read_table(table).to_pylist()]


def in_memory(noise, count: int, **fields) -> list[Utterance]:
    return [Utterance(f"u{i}", noise(i, 0.2), sampling_rate=RATE, **fields) for i in range(count)]


def test_every_sample_of_a_corpus_is_in_the_pack_where_the_index_and_the_table_say(corpus, tmp_path):
    summary = pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    assert (summary.num_clips, summary.num_shards, summary.problems) == (12, 1, [])
    samples = np.fromfile(tmp_path / "pack" / "shard_00000.dat", "<i2")
    index = ShardIndex.load(tmp_path / "pack" / "shard_00000.index.npz")
    rows = rows_of(tmp_path / "pack") + rows_of(tmp_path / "pack", "test")
    assert index.keys == [row["key"] for row in rows] == [u.key for u in read_corpus(corpus)]
    for row, offset, length in zip(rows, index.offset, index.length, strict=True):
        assert (row["audio"]["offset"], row["audio"]["length"]) == (offset, length)
        assert offset * 2 % 64 == 0
        expected, _ = soundfile.read(corpus / f"{row['key']}.flac", dtype="int16")
        np.testing.assert_array_equal(samples[offset : offset + length], expected)
        assert row["duration"] == pytest.approx(length / RATE)


def test_rows_keep_the_corpus_order_its_extra_columns_and_nulls(corpus, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    rows = rows_of(tmp_path / "pack")
    assert [row["seen"] for row in rows] == [True, False] * 3
    assert [row["terms"] for row in rows] == [[], ["term 1"], ["term 2"], [], ["term 4"], ["term 5"]]
    assert rows[1]["term_starts"] == pytest.approx([0.1])
    assert [row["term_ends"] for row in rows[3:5]] == [[], [pytest.approx(rows[4]["duration"])]]
    assert rows[0]["language"] is None


def test_a_clip_that_says_its_term_and_nothing_else_spans_it_from_end_to_end(corpus, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    row = rows_of(tmp_path / "pack")[2]
    assert row["text"] == row["terms"][0]
    assert (row["term_starts"], row["term_ends"]) == ([0.0], [row["duration"]])


def test_the_bytes_do_not_depend_on_the_workers(make_corpus, tmp_path):
    corpus = make_corpus(tmp_path / "corpus", clips_per_split=UTTERANCES_PER_PART + 5)
    settings = {"shard_bytes": 1 << 20, "quiet": True}
    pack_corpus(corpus, tmp_path / "here", num_workers=1, **settings)
    pack_corpus(corpus, tmp_path / "processes", num_workers=2, **settings)
    with ThreadPoolExecutor(3) as executor:
        pack_corpus(corpus, tmp_path / "threads", executor=executor, **settings)
    pack_corpus(iter(list(read_corpus(corpus))), tmp_path / "utterances", num_workers=1, **settings)
    expected = contents(tmp_path / "here")
    assert len(Pack.open(tmp_path / "here").shards) > 2
    for other in ("processes", "threads", "utterances"):
        assert contents(tmp_path / other) == expected


def test_shards_stay_within_their_bound_and_a_longer_clip_gets_its_own(noise, tmp_path):
    utterances = in_memory(noise, 8)
    utterances[3] = Utterance("long", noise(99, 3.0), sampling_rate=RATE)
    pack_corpus(utterances, tmp_path / "pack", shard_bytes=20_000, num_workers=1, quiet=True)
    shards = Pack.open(tmp_path / "pack").shards
    assert [shard["clips"] for shard in shards] == [2, 1, 1, 2, 2]
    assert [shard["bytes"] > 20_000 for shard in shards] == [False, False, True, False, False]
    assert not Pack.open(tmp_path / "pack").verify()


@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=12),
    shard_bytes=st.integers(1, 20_000),
    per_part=st.integers(1, 9),
)
@settings(max_examples=10, deadline=None)
def test_where_clips_lie_follows_from_their_lengths_and_not_from_the_parts_they_came_in(
    lengths, shard_bytes, per_part, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("packs")
    clips = [np.arange(length, dtype=np.int16) - i for i, length in enumerate(lengths)]
    utterances = [Utterance(f"u{i}", clip, sampling_rate=RATE) for i, clip in enumerate(clips)]
    pack_corpus(utterances, folder / "one", shard_bytes=shard_bytes, **QUIET)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(increment, "UTTERANCES_PER_PART", per_part)
        pack_corpus(utterances, folder / "other", shard_bytes=shard_bytes, **QUIET)
    assert contents(folder / "one") == contents(folder / "other")
    pack = Pack.open(folder / "one")
    assert pack.verify() == []
    assert all(shard["bytes"] <= shard_bytes or shard["clips"] == 1 for shard in pack.shards)
    for i, clip in enumerate(clips):
        np.testing.assert_array_equal(pack.find(f"u{i}").clip.pcm, clip)


PACK_SCRIPT = (
    "import sys; from qwen_term_retrieval.packs.packing import pack_corpus; pack_corpus(sys.argv[1], sys.argv[2], "
)
PACK_SCRIPT += "num_workers=2, shard_bytes=600_000, quiet=True)"


def start_packing(corpus: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PACK_SCRIPT, str(corpus), str(out)], stderr=subprocess.PIPE)


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_packing_killed_at_random_instants_goes_on_to_the_same_bytes_and_leaves_no_worker(make_corpus, tmp_path):
    corpus = make_corpus(tmp_path / "corpus", clips_per_split=3 * UTTERANCES_PER_PART, rate=44_100)
    pack_corpus(corpus, tmp_path / "whole", num_workers=1, shard_bytes=600_000, quiet=True)
    out, staging = tmp_path / "killed", tmp_path / "killed.incomplete"
    rng, orphans, num_kills = random.Random(7), [], 0
    for _ in range(5):
        process = start_packing(corpus, out)
        wait_for(lambda process=process: (staging / "parts").exists() or process.poll() is not None)
        time.sleep(rng.uniform(0, 0.5))
        if process.poll() is not None:
            break
        orphans += Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
        process.wait()
        num_kills += 1
        assert not out.exists() or contents(out) == contents(tmp_path / "whole")
    assert num_kills
    wait_for(lambda: not any(is_running(int(pid)) for pid in orphans))
    if not out.exists():
        assert start_packing(corpus, out).wait() == 0
    assert contents(out) == contents(tmp_path / "whole")


class Crash(Exception):  # noqa: N818
    pass


def crash(*args, **kwargs):
    raise Crash


def test_packing_goes_on_after_a_crash_between_shards_and_tables(make_corpus, tmp_path, monkeypatch):
    corpus = make_corpus(tmp_path / "corpus", clips_per_split=UTTERANCES_PER_PART)
    settings = {"shard_bytes": 500_000, "num_workers": 1, "quiet": True}
    pack_corpus(corpus, tmp_path / "whole", **settings)

    with monkeypatch.context() as patched:
        patched.setattr(increment, "write_tables", crash)
        with pytest.raises(Crash):
            pack_corpus(corpus, tmp_path / "out", **settings)
    staging = tmp_path / "out.incomplete"
    assert not (staging / "parts" / "part_0000000.pcm").exists()
    sealed = (staging / "pack" / "shard_00000.dat").stat()
    with pytest.raises(PackError, match=r"another corpus or other settings. Delete .*out.incomplete and pack again"):
        pack_corpus(corpus, tmp_path / "out", **settings | {"shard_bytes": 400_000})
    pack_corpus(corpus, tmp_path / "out", **settings)
    assert (tmp_path / "out" / "shard_00000.dat").stat().st_mtime_ns == sealed.st_mtime_ns
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not staging.exists()


def test_after_a_bad_file_is_mended_only_its_part_is_decoded_again(make_corpus, tmp_path, monkeypatch):
    corpus = make_corpus(tmp_path / "corpus", clips_per_split=UTTERANCES_PER_PART)
    pack_corpus(corpus, tmp_path / "whole", num_workers=1, quiet=True)
    last = corpus / "test" / f"{UTTERANCES_PER_PART - 1:04d}.flac"
    good = last.read_bytes()
    last.write_bytes(good[:1000])
    with pytest.raises(CorpusError):
        pack_corpus(corpus, tmp_path / "out", num_workers=1, quiet=True)
    parts = tmp_path / "out.incomplete" / "parts"
    before = (parts / "part_0000000.arrow").stat().st_mtime_ns
    last.write_bytes(good)
    with monkeypatch.context() as patched:
        patched.setattr(increment, "write_tables", crash)
        with pytest.raises(Crash):
            pack_corpus(corpus, tmp_path / "out", num_workers=1, quiet=True)
    assert (parts / "part_0000000.arrow").stat().st_mtime_ns == before
    pack_corpus(corpus, tmp_path / "out", num_workers=1, quiet=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.fixture
def spoiled(corpus) -> Path:
    """A corpus with one bad recording of each kind after one good one."""
    soundfile.write(corpus / "empty.wav", np.zeros(0, np.int16), RATE)
    soundfile.write(corpus / "nan.wav", np.full(10, np.nan, np.float32), RATE, subtype="FLOAT")
    (corpus / "corrupt.flac").write_bytes((corpus / "train" / "0000.flac").read_bytes()[:3000])
    names = ["train/0001.flac", "empty.wav", "nan.wav", "corrupt.flac", "gone.wav"]
    rows = [{"audio": name, "text": name, "terms": ["x"], "speaker": "s"} for name in names]
    rows.append({"audio": "train/0002.flac", "terms": ["x"], "term_starts": [0.1], "term_ends": [60.0]})
    (corpus / "train.termaudio").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (corpus / "test.termaudio").unlink()
    return corpus


PROBLEMS = [
    "holds 0 samples",
    "sample 0 is NaN or infinite",
    "corrupt near sample",
    "does not exist",
    "a term from 0.1 s to 60 s does not fit into a clip of",
]


@pytest.mark.parametrize("number", range(5))
def test_bad_audio_is_an_error_that_names_file_row_key_and_remedy(number, spoiled, tmp_path):
    manifest = spoiled / "train.termaudio"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([lines[0], lines[number + 1]]))
    with pytest.raises(CorpusError, match=PROBLEMS[number]) as error:
        pack_corpus(spoiled, tmp_path / "pack", num_workers=1, quiet=True)
    row = json.loads(lines[number + 1])
    for part in (f"{manifest}, line 2", f"key '{row['audio'].rpartition('.')[0]}'", row["audio"], "on_error='skip'"):
        assert part in str(error.value)
    assert not (tmp_path / "pack").exists()


def test_skipped_audio_is_listed_on_screen_and_in_the_pack(spoiled, tmp_path, caplog):
    summary = pack_corpus(spoiled, tmp_path / "pack", num_workers=1, on_error="skip", quiet=True)
    assert [row["key"] for row in rows_of(tmp_path / "pack")] == ["train/0001"]
    listed = Pack.open(tmp_path / "pack").increments[0]["problems"]
    assert listed == summary.problems
    for problem, expected in zip(listed, PROBLEMS, strict=True):
        assert expected in problem["problem"]
        assert problem["action"] == "skip"
        assert problem["where"] in caplog.text
    assert "5 utterances were skipped or silenced" in str(summary)


def test_a_problem_with_a_file_whose_name_is_no_utf8_is_listed(noise, tmp_path):
    gone = Utterance("gone", Path("caf\udce9.wav"))
    pack_corpus([*in_memory(noise, 1), gone], tmp_path / "pack", on_error="skip", **QUIET)
    assert r"caf\udce9.wav" in Pack.open(tmp_path / "pack").increments[0]["problems"][0]["where"]


def test_silenced_audio_keeps_its_row_with_a_second_of_silence_and_no_span(spoiled, tmp_path):
    pack_corpus(spoiled, tmp_path / "pack", num_workers=2, on_error="silence", quiet=True)
    rows = rows_of(tmp_path / "pack")
    assert [row["key"] for row in rows] == ["train/0001", "empty", "nan", "corrupt", "gone", "train/0002"]
    assert {row["duration"] for row in rows[1:]} == {1.0}
    assert [row["term_starts"] for row in rows[1:]] == [[None]] * 5
    assert not Pack.open(tmp_path / "pack").verify()


def test_clipped_samples_are_counted(tmp_path):
    loud = Utterance("loud", np.array([0.1, 2.0, -3.0]), sampling_rate=RATE)
    summary = pack_corpus([loud], tmp_path / "pack", num_workers=1, quiet=True)
    assert summary.num_clipped_samples == Pack.open(tmp_path / "pack").increments[0]["num_clipped_samples"] == 2
    assert "2 samples were out of range" in str(summary)


def test_a_recording_of_forty_minutes_packs_in_the_memory_of_a_second(tmp_path):
    second = np.random.default_rng(0).integers(-50, 50, RATE, dtype=np.int16)
    with soundfile.SoundFile(tmp_path / "long.flac", "w", RATE, 1) as file:
        for _ in range(40 * 60):
            file.write(second)
    soundfile.write(tmp_path / "short.flac", second, RATE)
    script = (
        "import resource, sys; from qwen_term_retrieval.packs.packing import pack_corpus\n"
        "from qwen_term_retrieval import Utterance\n"
        "for name in ('short', 'long'):\n"
        "    s = pack_corpus([Utterance(name, f'{sys.argv[1]}/{name}.flac')], f'{sys.argv[1]}/{name}', num_workers=1)\n"
        "    print(s.duration_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    output = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    (short, rss_short), (long, rss_long) = (map(float, line.split()) for line in output.stdout.splitlines())
    assert (short, long) == (1.0, 2400.0)
    assert rss_long - rss_short < 24 * 1024  # KiB; the PCM alone is 75 MiB


def test_an_output_folder_that_exists_is_not_touched_unless_asked_and_only_if_it_is_a_pack(corpus, noise, tmp_path):
    out = tmp_path / "pack"
    out.mkdir()
    pack_corpus(corpus, out, num_workers=1, quiet=True)
    before = contents(out)
    with pytest.raises(FileExistsError, match=r"is a pack already.*overwrite"):
        pack_corpus(in_memory(noise, 2), out, num_workers=1, quiet=True)
    assert contents(out) == before
    pack_corpus(in_memory(noise, 2), out, num_workers=1, overwrite=True, quiet=True)
    assert [row["key"] for row in rows_of(out)] == ["u0", "u1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "pack"]
    with pytest.raises(FileExistsError, match="exists and is not a pack"):
        pack_corpus(in_memory(noise, 2), corpus, overwrite=True, quiet=True)


def test_two_processes_do_not_pack_into_one_folder(noise, tmp_path):
    (tmp_path / "pack.incomplete").mkdir()
    with FileLock(tmp_path / "pack.incomplete" / "lock"), pytest.raises(PackError, match="another process is packing"):
        pack_corpus(in_memory(noise, 1), tmp_path / "pack", num_workers=1, quiet=True)


def test_remains_of_another_interrupted_corpus_do_not_get_into_a_pack(noise, corpus, tmp_path, monkeypatch):
    utterances = in_memory(noise, 9)
    settings = {"shard_bytes": 9000, "num_workers": 1, "quiet": True}
    utterances.append(Utterance("v", noise(9), sampling_rate=RATE, split="other"))
    with monkeypatch.context() as patched:
        patched.setattr(packing, "publish", crash)
        with pytest.raises(Crash):
            pack_corpus(utterances, tmp_path / "a", **settings)
    pack_corpus(corpus, tmp_path / "a", **settings)
    pack_corpus(corpus, tmp_path / "b", **settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_column_of_mixed_types_and_a_value_json_cannot_hold_are_named(noise, tmp_path):
    first, second = in_memory(noise, 2)
    mixed = [Utterance(u.key, u.audio, sampling_rate=RATE, extra={"room": v}) for u, v in ((first, 1), (second, "x"))]
    with pytest.raises(CorpusError, match="column 'room' mixes types"):
        pack_corpus(mixed, tmp_path / "a", num_workers=1, quiet=True)
    foreign = Utterance("u", first.audio, sampling_rate=RATE, extra={"when": object()}, source="table, row 1")
    with pytest.raises(CorpusError, match=r"table, row 1.*what a table cannot"):
        pack_corpus([foreign], tmp_path / "b", num_workers=1, quiet=True)


def test_a_column_of_mixed_types_stops_packing_as_soon_as_it_is_met(noise, tmp_path):
    read = []

    def rows():
        for i in range(6 * UTTERANCES_PER_PART):
            read.append(i)
            room = "hall" if i == UTTERANCES_PER_PART else 1
            yield Utterance(f"u{i}", noise(i, 0.01), sampling_rate=RATE, extra={"room": room})

    with pytest.raises(CorpusError, match="mixes types"):
        pack_corpus(rows(), tmp_path / "pack", **QUIET)
    assert len(read) <= 3 * UTTERANCES_PER_PART


def test_integers_and_floats_of_one_column_become_floats_across_parts(noise, tmp_path):
    count = UTTERANCES_PER_PART + 1
    utterances = [
        Utterance(u.key, u.audio, sampling_rate=RATE, extra={"level": 0.5 if i == count - 1 else i})
        for i, u in enumerate(in_memory(noise, count))
    ]
    pack_corpus(utterances, tmp_path / "pack", num_workers=1, quiet=True)
    assert [row["level"] for row in rows_of(tmp_path / "pack")] == [*map(float, range(count - 1)), 0.5]


def test_columns_of_the_corpus_may_have_the_names_that_packing_uses_inside(noise, tmp_path):
    first, second = in_memory(noise, 2)
    named = Utterance(first.key, first.audio, sampling_rate=RATE, extra={"length": "long", "crc32": 1})
    pack_corpus([named, second], tmp_path / "pack", num_workers=1, quiet=True)
    assert [(row["length"], row["crc32"]) for row in rows_of(tmp_path / "pack")] == [("long", 1), (None, None)]


def test_wrong_arguments_and_empty_corpora_are_errors(tmp_path):
    with pytest.raises(ValueError, match="on_error='ignore'; it must be one of raise, skip, silence"):
        pack_corpus([], tmp_path / "pack", on_error="ignore")
    with pytest.raises(ValueError, match="must be positive"):
        pack_corpus([], tmp_path / "pack", sampling_rate=0)
    with pytest.raises(CorpusError, match="no utterance to pack"):
        pack_corpus([], tmp_path / "pack", num_workers=1, quiet=True)
    assert not (tmp_path / "pack").exists()
