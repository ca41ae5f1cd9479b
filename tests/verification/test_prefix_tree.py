"""A prefix tree spells every pronunciation, and holds what they share once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.verification.prefix_tree import PrefixTree
from qwen_term_retrieval.verification.pronunciations import PronunciationBank

BANKS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=5), max_size=12)


def tree_of(pronunciations):
    return PrefixTree.of(PronunciationBank.of([[said] for said in pronunciations], num_classes=4))


def spelled(tree, node):
    sounds = []
    while node:
        sounds.append(int(tree.classes_N[node]))
        node = tree.parents_N[node]
    return sounds[::-1]


@given(BANKS)
@settings(max_examples=100, deadline=None)
def test_every_node_is_a_prefix_and_every_prefix_one_node(pronunciations):
    tree = tree_of(pronunciations)
    prefixes = {tuple(said[:end]) for said in pronunciations for end in range(len(said) + 1)} | {()}
    assert sorted(tuple(spelled(tree, node)) for node in range(len(tree))) == sorted(prefixes)
    assert [spelled(tree, node) for node in tree.nodes_R] == pronunciations


@given(BANKS)
@settings(max_examples=100, deadline=None)
def test_levels_children_and_ends_are_ranges(pronunciations):
    tree = tree_of(pronunciations)
    for level, (first, end) in enumerate(zip(tree.levels_L2[:-1], tree.levels_L2[1:], strict=True)):
        assert {len(spelled(tree, node)) for node in range(first, end)} == {level}
    for node in range(len(tree)):
        children = range(tree.first_children[node], tree.first_children[node + 1])
        assert [child for child in range(1, len(tree)) if tree.parents_N[child] == node] == list(children)
        rows = tree.rows_by_node[tree.first_rows[node] : tree.first_rows[node + 1]]
        assert rows.tolist() == [row for row, end in enumerate(tree.nodes_R) if end == node]


@given(BANKS)
@settings(max_examples=100, deadline=None)
def test_a_node_knows_how_many_sounds_may_follow(pronunciations):
    tree = tree_of(pronunciations)
    for node in range(len(tree)):
        prefix = spelled(tree, node)
        longest = max((len(said) for said in pronunciations if said[: len(prefix)] == prefix), default=0)
        assert tree.sounds_left[node] == longest - len(prefix)


def test_a_tree_is_read_back_from_its_files(tmp_path):
    tree = tree_of([[1, 2], [1, 3, 3], [2]])
    tree.save(tmp_path)
    opened = PrefixTree.open(tmp_path)
    assert isinstance(opened.parents_N, np.memmap)
    for name, values in vars(opened).items():
        np.testing.assert_array_equal(values, getattr(tree, name))


@pytest.mark.parametrize(
    ("name", "values"), [("classes", np.zeros(2, np.int16)), ("parents", np.zeros(6)), ("levels", np.array([0, 1, 5]))]
)
def test_files_of_another_tree_are_refused(tmp_path, name, values):
    tree_of([[1, 2], [1, 3, 3], [2]]).save(tmp_path)
    np.save(tmp_path / f"tree_{name}.npy", values)
    with pytest.raises(ValueError, match=f"{tmp_path}.*Make the index again"):
        PrefixTree.open(tmp_path)
