"""Pronunciations as arrays."""

from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qwen_term_retrieval.text.ways import Ways

NUMBER_OF = {"a": 0, "b": 1, "c": 2}
SAID = st.lists(st.lists(st.lists(st.sampled_from("abcd"), max_size=4), min_size=1, max_size=3), max_size=6)


def in_numbers(said):
    return [[[NUMBER_OF.get(symbol, -1) for symbol in way] for way in ways] for ways in said]


def as_lists(ways):
    return [[way.tolist() for way in own] for own in ways.lists()]


@given(SAID, SAID)
def test_arrays_hold_what_was_said(some, others):
    ways = Ways.join([Ways.of(some, NUMBER_OF), Ways.of(others, NUMBER_OF)])
    assert as_lists(ways) == in_numbers(some + others)
    assert as_lists(ways.first()) == [own[:1] for own in in_numbers(some + others)]


@given(SAID)
def test_ways_that_go_leave_the_others_to_their_texts(said):
    ways = Ways.of(said, NUMBER_OF)
    kept = [[len(way) > 1 for way in own] for own in said]
    some = ways.only(ways.lengths_R > 1)
    assert as_lists(some) == [
        [way for way, stays in zip(own, keep, strict=True) if stays]
        for own, keep in zip(in_numbers(said), kept, strict=True)
    ]


@given(SAID, st.integers(0, 6))
def test_several_texts_become_one(said, first):
    ways = Ways.of(said, NUMBER_OF)
    sizes_G = np.array([len(said[:first]), len(said[first:])], np.int32)
    grouped = [list(chain.from_iterable(part)) for part in (in_numbers(said)[:first], in_numbers(said)[first:])]
    assert as_lists(ways.of_groups(sizes_G)) == grouped
