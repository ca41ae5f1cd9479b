"""Terms as arrays, made in several processes."""

import logging
import os
import signal

import numpy as np
import pytest

from qwen_term_retrieval.retrieval.indexes.terms import TermTable
from qwen_term_retrieval.retrieval.indexing import saying
from qwen_term_retrieval.retrieval.indexing.saying import Said, say, say_in_stretches
from qwen_term_retrieval.text.glossary import Term
from qwen_term_retrieval.text.pronouncing import Pronouncer
from qwen_term_retrieval.text.spellings import term_id

SPEAKERS = [Pronouncer("espeak:en-us", several=True), Pronouncer("characters")]
WORDS = ("sepsis", "IL-6", "5 mg", "atrial fibrillation", "naïve")
TERMS = [
    Term(text, term_id(text), aliases=(f"alias {number}",) if number % 7 == 0 else ())
    for number, text in enumerate(
        f"{word} {letter}{digit}" for word in WORDS for letter in "abcdefgh" for digit in "abcdefgh"
    )
]


def arrays_of(said: Said):
    return [said.num_rows_T, said.hashes_S, *(array for ways in said.ways for array in vars(ways).values())]


def assert_same(some: Said, others: Said):
    for one, other in zip(arrays_of(some), arrays_of(others), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def in_processes(monkeypatch):
    monkeypatch.setattr(saying, "LEAST_TERMS", 100)
    monkeypatch.setattr(saying, "_PER_JOB", 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


@pytest.mark.parametrize("done", [0, 100])
def test_terms_are_said_in_processes_as_they_are_in_one(in_processes, done):
    stretches = list(say_in_stretches(TERMS, SPEAKERS, 50, done))
    assert [len(stretch.num_rows_T) for stretch in stretches] == [50] * ((len(TERMS) - done) // 50) + [20]
    assert_same(Said.join(stretches), say(TERMS[done:], SPEAKERS))


def test_a_killed_process_is_done_without(in_processes, caplog):
    stretches = say_in_stretches(TERMS, SPEAKERS, 50)
    found = [next(stretches)]
    children = list(map(int, _children_of(os.getpid())))
    assert children
    with caplog.at_level(logging.WARNING):
        for child in children:
            os.kill(child, signal.SIGKILL)
        found += stretches
    assert "goes on in one process" in caplog.text
    assert_same(Said.join(found), say(TERMS, SPEAKERS))


def test_who_stops_early_leaves_no_process(in_processes):
    before = _children_of(os.getpid())
    stretches = say_in_stretches(TERMS, SPEAKERS, 50)
    next(stretches)
    assert _children_of(os.getpid()) != before
    stretches.close()
    assert _children_of(os.getpid()) == before


def test_an_unknown_language_is_named(in_processes):
    speakers = [Pronouncer("espeak:en-us", {"fr": "espeak:fr"})]
    with pytest.raises(ValueError, match=r"'sepsis'.*no phonemizer for 'xx'"):
        list(say_in_stretches([*TERMS, Term("sepsis", 1, language="xx")], speakers, 50))


def test_spellings_are_known_by_what_an_index_finds_them_by():
    said = say(TERMS, [])
    whole, known = TermTable.of(TERMS), TermTable.of(TERMS, said.hashes_S, said.num_rows_T)
    np.testing.assert_array_equal(whole.keys_S, known.keys_S)
    np.testing.assert_array_equal(whole.first_rows_T1, known.first_rows_T1)
    assert said.num_rows_T.max() > 1


def _children_of(process):
    with open(f"/proc/{process}/task/{process}/children") as file:
        return file.read().split()
