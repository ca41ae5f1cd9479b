from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from qwen_term_retrieval import pack_corpus
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.errors import CorpusError, PackError
from qwen_term_retrieval.packs.writing.parts import UTTERANCES_PER_PART, make_part
from qwen_term_retrieval.workers import MapExecutor


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def large_corpus(make_corpus, tmp_path) -> Path:
    return make_corpus(tmp_path / "corpus", clips_per_split=UTTERANCES_PER_PART + 5)


def test_spawned_processes_threads_dask_and_a_map_function_make_the_same_bytes(large_corpus, tmp_path):
    settings = {"shard_bytes": 1 << 20, "quiet": True}
    pack_corpus(large_corpus, tmp_path / "here", num_workers=1, **settings)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        pack_corpus(large_corpus, tmp_path / "spawned", executor=executor, **settings)
    with ThreadPoolExecutor(3) as executor:
        pack_corpus(large_corpus, tmp_path / "threads", executor=executor, **settings)
    cluster = LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None)
    with cluster, Client(cluster) as client:
        pack_corpus(large_corpus, tmp_path / "dask", executor=client.get_executor(), **settings)
    mapped = MapExecutor(lambda jobs: map(make_part, jobs), num_jobs=2)
    pack_corpus(large_corpus, tmp_path / "mapped", executor=mapped, **settings)
    expected = contents(tmp_path / "here")
    assert len(list((tmp_path / "here").glob("shard_*.dat"))) > 2
    for other in ("spawned", "threads", "dask", "mapped"):
        assert contents(tmp_path / other) == expected


def test_a_map_function_gets_a_bounded_number_of_jobs_at_a_time(noise, tmp_path):
    sizes = []

    def counting_map(jobs):
        jobs = list(jobs)
        sizes.append(len(jobs))
        return map(make_part, jobs)

    count = 4 * UTTERANCES_PER_PART + 1
    utterances = (Utterance(f"u{i}", noise(i, 0.02), sampling_rate=16_000) for i in range(count))
    summary = pack_corpus(utterances, tmp_path / "pack", executor=MapExecutor(counting_map, num_jobs=2), quiet=True)
    assert summary.num_clips == count
    assert sizes == [2, 2, 1]


def test_bad_audio_on_a_worker_is_the_same_error_as_here(large_corpus, tmp_path):
    (large_corpus / "train" / "0003.flac").write_bytes(b"broken")
    with ProcessPoolExecutor(1) as executor, pytest.raises(CorpusError, match=r"key 'train/0003', file .*0003.flac"):
        pack_corpus(large_corpus, tmp_path / "pack", executor=executor, quiet=True)


class DiesWhenUnpickled:
    def __reduce__(self):
        return os._exit, (1,)


def test_a_worker_that_dies_is_an_error_with_a_remedy(noise, tmp_path):
    deadly = Utterance("u", noise(1), sampling_rate=16_000, extra={"x": DiesWhenUnpickled()})
    with (
        ProcessPoolExecutor(1) as executor,
        pytest.raises(PackError, match=r"a packing worker died .*run again to go on"),
    ):
        pack_corpus([deadly], tmp_path / "pack", executor=executor, quiet=True)
