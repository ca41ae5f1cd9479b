"""Search in a prefix tree gives the scores of `best_paths`, and without a beam the best of them; a beam owns up."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.verification import sound_search
from qwen_term_retrieval.verification.alignment import Pairs, best_paths
from qwen_term_retrieval.verification.prefix_tree import PrefixTree
from qwen_term_retrieval.verification.pronunciations import PronunciationBank
from qwen_term_retrieval.verification.sound_search import Question, merge_silence, nearest_pronunciations

CLASSES = 5
SAID = st.lists(st.integers(1, CLASSES - 1), min_size=1, max_size=6)


def relative(num_frames, seed=0, sharpness=3.0):
    logits_TC = np.random.default_rng(seed).normal(0, sharpness, (num_frames, CLASSES)).astype(np.float32)
    return logits_TC - logits_TC.max(axis=1, keepdims=True)


def many_pronunciations(number=3000, longest=9):
    rng = np.random.default_rng(1)
    ways = [rng.integers(1, CLASSES, rng.integers(1, longest + 1)).tolist() for _ in range(number)]
    return PronunciationBank.of([[way] for way in ways], CLASSES)


def one_by_one(relative_TC, bank, free, bonus):
    """The score of every pronunciation, by `best_paths`."""
    log_probs_TC = torch.from_numpy(relative_TC).log_softmax(dim=1)
    pairs = Pairs.of_whole_clips(np.arange(len(bank)), np.zeros(len(bank), np.int64), [len(relative_TC)])
    scores_R = best_paths(log_probs_TC[None], bank, pairs, free=free).scores_P
    best_of_frames = 0.0 if free else log_probs_TC.amax(dim=1).sum().item()
    return scores_R - best_of_frames + bonus * bank.lengths


@given(
    pronunciations=st.lists(SAID, min_size=1, max_size=15),
    num_frames=st.integers(1, 9),
    seed=st.integers(0, 99),
    free=st.booleans(),
    bonus=st.sampled_from([0.0, 1.5]),
    keep=st.integers(1, 4),
)
@settings(max_examples=100, deadline=None)
def test_the_best_pronunciations_are_found_with_their_scores(pronunciations, num_frames, seed, free, bonus, keep):
    relative_TC, bank = relative(num_frames, seed), PronunciationBank.of([[way] for way in pronunciations], CLASSES)
    answer = nearest_pronunciations(Question(relative_TC, free, bonus, None), PrefixTree.of(bank), keep)
    expected_R = one_by_one(relative_TC, bank, free, bonus)
    np.testing.assert_allclose(answer.scores_R, expected_R[answer.rows_R], atol=1e-3)
    wanted = np.sort(expected_R[np.isfinite(expected_R)])[::-1][:keep]
    np.testing.assert_allclose(np.sort(answer.scores_R)[::-1][: len(wanted)], wanted, atol=1e-3)
    assert answer.exact


@pytest.mark.parametrize(("free", "bonus"), [(False, 0.0), (True, 0.0), (True, 2.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_is_lost_where_many_prefixes_are_dropped(monkeypatch, free, bonus, seed):
    monkeypatch.setattr(sound_search, "_NARROW", 20)
    monkeypatch.setattr(sound_search, "_BLOCK", 64)
    bank, relative_TC = many_pronunciations(), relative(20, seed)
    answer = nearest_pronunciations(Question(relative_TC, free, bonus, None), PrefixTree.of(bank), 10)
    expected_R = one_by_one(relative_TC, bank, free, bonus)
    np.testing.assert_allclose(np.sort(answer.scores_R)[::-1][:10], np.sort(expected_R)[::-1][:10], atol=1e-3)
    assert answer.exact


@pytest.mark.parametrize("free", [False, True])
def test_so_many_terms_are_found_though_one_of_them_is_said_in_many_ways(free):
    bank, relative_TC = many_pronunciations(), relative(20)
    question, tree = Question(relative_TC, free, 1.0, None), PrefixTree.of(bank)
    expected_R = one_by_one(relative_TC, bank, free, 1.0)
    owners_R = np.arange(len(bank))
    owners_R[np.argsort(-expected_R)[:30]] = 7  # the thirty best are ways to say one term
    answer = nearest_pronunciations(question, tree, 10, owners_R=owners_R)
    best_of = {owner: expected_R[owners_R == owner].max() for owner in np.unique(owners_R)}
    assert set(sorted(best_of, key=best_of.get)[-10:]) <= set(owners_R[answer.rows_R].tolist())
    np.testing.assert_allclose(answer.scores_R, expected_R[answer.rows_R], atol=1e-3)
    assert len(nearest_pronunciations(question, tree, 10).rows_R) < len(answer.rows_R)


@pytest.mark.parametrize("beam", [1, 30, 2000])
def test_a_beam_says_whether_something_better_may_be_lost(monkeypatch, beam):
    monkeypatch.setattr(sound_search, "_NARROW", 5)
    bank, relative_TC = many_pronunciations(), relative(20, sharpness=1.0)
    answer = nearest_pronunciations(Question(relative_TC, False, 0.0, beam), PrefixTree.of(bank), 10)
    expected_R = one_by_one(relative_TC, bank, False, 0.0)
    np.testing.assert_allclose(answer.scores_R, expected_R[answer.rows_R], atol=1e-3)
    best_found, best = np.sort(answer.scores_R)[::-1][:10], np.sort(expected_R)[::-1][:10]
    lost = len(best_found) < 10 or not np.allclose(best_found, best, atol=1e-3)
    assert answer.exact == (beam == 2000)
    assert not (lost and answer.exact)


def test_pronunciations_that_are_not_live_take_no_place():
    bank, relative_TC = many_pronunciations(), relative(20)
    expected_R = one_by_one(relative_TC, bank, False, 0.0)
    live_R = expected_R < np.sort(expected_R)[-10]
    question, tree = Question(relative_TC, False, 0.0, None), PrefixTree.of(bank)
    answer = nearest_pronunciations(question, tree, 5, live_R=live_R)
    best = np.sort(expected_R[live_R])[::-1][:5]
    np.testing.assert_allclose(np.sort(answer.scores_R)[::-1][:5], best, atol=1e-3)


def test_frames_of_certain_silence_become_one():
    silence, other, unsure = [0.0, -9.0, -8.0, -9.0, -9.0], [0.0, -9.0, -7.0, -9.0, -9.0], [0.0, -1.0, -5.0, -5.0, -5.0]
    relative_TC = np.array([silence, silence, unsure, silence, unsure, silence, other], np.float32)
    np.testing.assert_array_equal(merge_silence(relative_TC), [silence, unsure, silence, unsure, other])
    assert merge_silence(relative_TC[:0]).shape == (0, CLASSES)


def test_merged_silence_leaves_the_scores_of_what_is_heard_between():
    said = [0, 0, 0, 2, 0, 0, 0, 3, 3, 0, 0, 2, 0, 0]
    relative_TC = np.full((len(said), CLASSES), -9.0, np.float32)
    relative_TC[np.arange(len(said)), said] = 0
    merged_TC, bank = merge_silence(relative_TC), PronunciationBank.of([[[2, 3, 2]], [[2, 3, 1]], [[2, 2]]], CLASSES)
    assert len(merged_TC) == 8
    merged_R, expected_R = (one_by_one(each_TC, bank, free=False, bonus=0) for each_TC in (merged_TC, relative_TC))
    np.testing.assert_allclose(merged_R, expected_R, atol=1e-3)
