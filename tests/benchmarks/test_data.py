from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from benchmarks.data import __main__ as data
from benchmarks.data import clips as data_clips
from benchmarks.data import large as data_large
from benchmarks.data import loader as data_loader
from benchmarks.data import packing as data_packing
from benchmarks.data.clips import BenchmarkClips, speech_clips
from benchmarks.data.cold import drop_from_cache, share_in_cache
from benchmarks.data.measure import Row, RowError, RowProcess, batched, shuffled_batches
from benchmarks.data.reading import FLOOR, OURS, UNIT, measure_warm, own_rows
from benchmarks.data.report import report
from benchmarks.faults import __main__ as faults
from qwen_term_retrieval.packs.pack import Pack

NUM_CLIPS = 70


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> BenchmarkClips:
    made = BenchmarkClips(tmp_path_factory.mktemp("benchmark") / "clips")
    made.make(NUM_CLIPS)
    return made


def test_clips_are_of_the_lengths_asked_for_and_the_same_each_time():
    first, again = (list(speech_clips(9, data_clips.DEMO_CORPUS, seed=3)) for _ in range(2))
    assert all(0.5 <= len(clip) / 16_000 <= 3.0 for clip in first)
    assert all(np.array_equal(clip, same) for clip, same in zip(first, again, strict=True))


def test_a_shuffled_pass_visits_every_clip_once():
    visited = np.concatenate(list(shuffled_batches(130, seed=1)))
    assert sorted(visited) == list(range(130))
    assert visited.tolist() != sorted(visited)


def test_batches_of_a_stream_lose_no_clip():
    assert [len(batch) for batch in batched(iter([np.zeros(1)] * 130))] == [64, 64, 2]


def test_every_row_of_our_own_delivers_every_sample(clips):
    rows = [row for row in own_rows(clips) if row.name in (UNIT, "ours, shuffled batches")]
    measure_warm(rows, clips, repetitions=1)
    assert [row.error for row in rows] == ["", ""]
    assert {row.samples for row in rows} == {int(clips.lengths.sum())}
    assert all(row.clips_per_second > 0 for row in rows)


def test_a_row_that_delivers_other_samples_is_not_counted(clips):
    code = "from benchmarks.data.measure import serve; serve(lambda: lambda seed: (1, 2))"
    row = Row("liar", "delivers too little", [sys.executable, "-c", code])
    measure_warm([row], clips, repetitions=1)
    assert "delivered 2 samples" in row.error
    assert math.isnan(row.clips_per_second)


def test_a_row_that_cannot_start_says_why(tmp_path):
    process = RowProcess("broken", [sys.executable, "-c", "raise SystemExit('no such format')"], tmp_path / "log")
    with pytest.raises(RowError, match="broken: no such format"):
        process.wait_until_ready()
    process.close()


def test_the_cache_is_emptied_of_a_folder_and_counted(tmp_path):
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    before = share_in_cache(tmp_path)
    drop_from_cache(tmp_path)
    assert before == 1.0
    assert share_in_cache(tmp_path) == 0.0


def test_loaders_deliver_every_clip(clips):
    results = data_loader.run(clips, repetitions=1)
    assert set(results["clips_per_second"]) == {"0", "1", "2"}


def test_packing_is_compared_with_a_bare_loop(clips):
    results = data_packing.run_packing(clips, repetitions=1)
    assert results["ratio_to_bare_loop"] > 0
    assert "soundfile" in results["profile_of_one_worker"]


def test_a_large_pack_is_whole_and_finds_its_keys(clips, tmp_path):
    large = tmp_path / "large"
    data_large.make_large_pack(clips.pack, large, 1000)
    assert Pack.open(large).num_clips == 1000
    assert Pack.open(large).verify() == []
    assert data_large.lookups_per_second(large, 1000)["lookups_per_second"] > 0


def test_the_report_tells_what_was_not_measured():
    reading = {
        "rows": {
            UNIT: {"does": "slices", "clips_per_second": 100.0},
            OURS: {"does": "batches", "clips_per_second": 300.0},
            FLOOR: {"does": "reading", "clips_per_second": 400.0},
            "LitData": {"does": "iteration", "error": "not installed: no such package"},
        },
        "bytes_per_clip": 50_000.0,
        "copy_bytes_per_second": 1e10,
        "profile": "",
    }
    text = report({"clips": 1000, "repetitions": 5, "reading": reading})
    assert "not installed: no such package" in text
    assert f"| {OURS} | batches | 300 | 3.00× | 1.0× |" in text
    assert "takes 4.00× less time than the unit" in text
    assert "reaches 75% of that" in text


@pytest.mark.parametrize("program", [data, faults])
def test_an_unknown_section_is_refused_before_anything_runs(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--quick", "--only", "speed"])
    with pytest.raises(SystemExit):
        program.arguments()
    assert "no section speed" in capsys.readouterr().err
