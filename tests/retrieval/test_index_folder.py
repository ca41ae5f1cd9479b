"""An index on disk: written whole or not at all, opened without reading it, changed without rewriting it."""

import json
import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen_term_retrieval.retrieval.index import TermIndex, TermIndexError
from qwen_term_retrieval.retrieval.indexes import building
from qwen_term_retrieval.retrieval.indexes.folder import damages_of
from qwen_term_retrieval.retrieval.indexes.sounds import Speaker
from qwen_term_retrieval.retrieval.indexing.embedding import Embedded
from qwen_term_retrieval.retrieval.indexing.saying import say
from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.text.spellings import term_id
from qwen_term_retrieval.text.ways import Ways
from qwen_term_retrieval.verification.pronunciations import PronunciationBank

DIM = 8


def terms_of(texts):
    return [Term(text, term_id(text)) for text in texts]


def unit_vectors(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(number, DIM, generator=generator), dim=1)


SPEAKER = Speaker(lambda terms: [[np.array([1, 2, 3], np.int16)] for _ in terms], num_classes=5, alphabet="by hand")


def names(number, word="term"):
    return terms_of(f"{word} {'x' * each}" for each in range(1, number + 1))


@pytest.fixture(params=["float32", "int8"])
def index(request, monkeypatch):
    monkeypatch.setattr("qwen_term_retrieval.retrieval.indexes.holding.SKETCH_FROM_ROWS", 32)
    index = TermIndex(DIM, fingerprint="a model", hold=request.param)
    index.add(names(50), unit_vectors(50), SPEAKER)
    return index


def files(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_what_is_added_and_removed_later_rewrites_no_file(index, tmp_path):
    folder = index.save(tmp_path / "index")
    before = files(folder)
    opened = TermIndex.load(folder)
    opened.add(names(10, "late"), unit_vectors(10, seed=1), SPEAKER)
    opened.remove(["term x", "late xx"])
    opened.save(folder, overwrite=True)
    after = files(folder)
    assert all(after[name] == when for name, when in before.items() if name.startswith("part-"))
    again = TermIndex.load(folder)
    assert [term.text for term in again.terms] == [term.text for term in opened.terms]
    torch.testing.assert_close(again.vectors_ND, opened.vectors_ND)
    assert len(again.pronunciations) == len(again) == 58
    assert damages_of(folder) == []
    # Saved elsewhere, all is one part again, and what was removed is gone.
    other = again.save(tmp_path / "other")
    assert len(list(other.glob("part-*"))) == 1
    assert not list(other.glob("removed-*"))
    assert TermIndex.load(other).terms == again.terms


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel what of a file is in memory")
@pytest.mark.parametrize("hold", ["int8", "ann"])
def test_a_search_leaves_nothing_of_the_vectors_file_in_memory(tmp_path, monkeypatch, hold):
    if hold == "ann":
        pytest.importorskip("usearch")
    monkeypatch.setattr("qwen_term_retrieval.retrieval.indexes.holding.SKETCH_FROM_ROWS", 32)
    index = TermIndex(DIM, fingerprint="a model", hold=hold)
    index.add(names(5000), unit_vectors(5000))
    opened = TermIndex.load(index.save(tmp_path / "index"))
    query_BWD = unit_vectors(40, seed=2).view(4, 10, DIM)
    found = opened.search(query_BWD, 10)
    torch.testing.assert_close(opened.cosines(query_BWD[0], found.terms[0].tolist()), found.scores[0])
    maps = [each for each in Path("/proc/self/smaps").read_text().split("VmFlags") if f"{tmp_path}/index" in each]
    of_vectors = [re.search(r"\nRss: +(\d+) kB", each)[1] for each in maps if "vectors.npy" in each]
    assert of_vectors
    assert set(of_vectors) == {"0"}


def test_what_no_longer_is_of_the_index_goes_from_its_folder(index, tmp_path):
    folder = index.save(tmp_path / "index")
    index.add(names(10, "late"), unit_vectors(10, seed=1), SPEAKER)
    index.save(folder, overwrite=True)
    assert len(list(folder.glob("part-*"))) == 2
    index.remove([term.text for term in names(10, "late")])
    index.save(folder, overwrite=True)
    assert len(list(folder.glob("part-*"))) == 1
    assert damages_of(folder) == []


def test_any_flipped_bit_is_found(index, tmp_path):
    index.add(names(3, "late"), unit_vectors(3, seed=1), SPEAKER)
    index.remove(["term x"])
    folder = index.save(tmp_path / "index")
    index.remove(["term xx"])
    index.save(folder, overwrite=True)
    rng = np.random.default_rng(0)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock"):
        whole = path.read_bytes()
        for bit in rng.integers(0, 8 * len(whole), 4 if path.name != "meta.json" else 100).tolist():
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            assert damages_of(folder) != [], (path.name, bit)
        path.write_bytes(whole)
    assert damages_of(folder) == []


def test_an_index_whose_spellings_are_known_by_another_rule_still_finds_them(index, tmp_path, monkeypatch):
    folder = index.save(tmp_path / "index")
    rule = "qwen_term_retrieval.retrieval.indexes.{}.spelling_key"
    for module in ("folder", "terms", "state"):
        monkeypatch.setattr(rule.format(module), lambda text, language: f"~{text.lower()}")
    assert TermIndex.load(folder).id_of("TERM xx") == term_id("term xx")


# ---- built straight into a folder -----------------------------------------------------------------------------------


def stretch_of(terms, vectors_RD):
    said = say(terms, [])
    bank = PronunciationBank.of_owned(SPEAKER.say(terms), SPEAKER.num_classes)
    sounds = Ways(bank.classes_S, bank.lengths.astype(np.int32), np.ones(len(terms), np.int32))
    return Embedded(terms, said.num_rows_T, said.hashes_S, vectors_RD, sounds)


def build(out, *, number=60, slowly=False, began=None):
    terms = names(number)
    vectors = unit_vectors(number)
    index = TermIndex(DIM, fingerprint="a model")
    about = index.about() | {"num_sounds": SPEAKER.num_classes, "alphabet": SPEAKER.alphabet}

    def stretches(done):
        if began is not None:
            began.append(done)
        for first in range(done, number, 10):
            time.sleep(0.3 if slowly else 0)
            own = terms[first : first + 10]
            yield stretch_of(own, vectors[first : first + 10])

    building.build_index(out, terms, about, stretches, index.made_quick, stretch_terms=10)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(sys.platform != "linux", reason="forks, so that the child need not import everything again")
def test_a_killed_build_goes_on_where_it_stopped_and_ends_in_the_same_bytes(tmp_path):
    build(tmp_path / "undisturbed")
    out = tmp_path / "index"
    process = multiprocessing.get_context("fork").Process(target=build, args=(out,), kwargs={"slowly": True})
    process.start()
    staging = tmp_path / "index.incomplete"
    deadline = time.monotonic() + 120
    while len(list(staging.glob("done-*.npz"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not out.exists()
    began = []
    build(out, began=began)
    assert began[0] >= 20
    assert content(out) == content(tmp_path / "undisturbed")
    assert not staging.exists()
    opened = TermIndex.load(out, fingerprint="a model")
    torch.testing.assert_close(opened.vectors_ND, unit_vectors(60))
    assert len(opened.pronunciations) == 60


def test_another_glossary_does_not_go_on_with_what_is_there(tmp_path):
    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "write_columns", fail)
        with pytest.raises(OSError, match="no space left"):
            build(tmp_path / "index")
    began = []
    build(tmp_path / "index", number=40, began=began)
    assert began == [0]
    assert len(TermIndex.load(tmp_path / "index")) == 40


def test_an_index_without_checksums_cannot_be_verified(tmp_path):
    meta = {"format": "qwen_term_retrieval.term_index", "version": 1, "bytes": {}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(TermIndexError, match="no checksums"):
        damages_of(tmp_path)
