"""Mined negatives: exactly the nearest terms, and never one that was said."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.training import mining
from qwen_term_retrieval.training.mining import NO_TERM, nearest_wrong_terms


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_hand(query_QD, clip_Q, positive_Q, bank_ND, excluded, k, ratio):
    table = []
    for clip, rows in enumerate(excluded):
        best = {}
        for query in np.flatnonzero(np.asarray(clip_Q) == clip):
            ceiling = positive_Q[query] * ratio if positive_Q[query] > 0 else np.inf
            for term, score in enumerate((query_QD[query] @ bank_ND.T).tolist()):
                if term not in rows and score <= ceiling:
                    best[term] = max(best.get(term, -2.0), score)
        nearest = sorted(best, key=lambda term: -best[term])[:k]
        table.append(nearest + [NO_TERM] * (k - len(nearest)))
    return np.array(table)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 40), st.integers(1, 6))
def test_the_table_is_what_scoring_everything_gives(seed, num_clips, num_terms, k):
    generator = np.random.default_rng(seed)
    clip_Q = np.sort(generator.integers(0, num_clips, size=12))
    query_QD, bank_ND = unit(12, 8, seed=seed), unit(num_terms, 8, seed=seed + 1)
    excluded = [generator.choice(num_terms, size=min(2, num_terms), replace=False).tolist() for _ in range(num_clips)]
    positive_Q = torch.tensor([(query_QD[q] @ bank_ND[excluded[c]].T).max() for q, c in enumerate(clip_Q)])
    table = nearest_wrong_terms(query_QD, clip_Q, positive_Q, bank_ND, excluded, k)
    assert table.dtype == np.int32
    assert table.tolist() == by_hand(query_QD, clip_Q, positive_Q, bank_ND, excluded, k, 0.95).tolist()


def test_blocks_do_not_show_in_the_result(monkeypatch):
    query_QD, bank_ND = unit(50, 16), unit(300, 16, seed=1)
    arguments = (query_QD, np.arange(50), torch.full((50,), 0.6), bank_ND, [[clip] for clip in range(50)], 5)
    whole = nearest_wrong_terms(*arguments)
    monkeypatch.setattr(mining, "_QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(mining, "_TERMS_AT_ONCE", 11)
    np.testing.assert_array_equal(nearest_wrong_terms(*arguments), whole)


def test_a_term_said_in_the_clip_is_never_mined():
    vectors = unit(4, 16)
    table = nearest_wrong_terms(
        vectors, range(4), torch.full((4,), -torch.inf), vectors, [[0], [1], [2], [0, 1, 2, 3]], 4
    )
    for clip in range(3):
        assert clip not in table[clip]
        assert sorted(table[clip][:3]) == sorted({0, 1, 2, 3} - {clip})
    assert table[3].tolist() == [NO_TERM] * 4


def test_a_term_almost_as_near_as_the_right_one_is_left_alone():
    right = torch.tensor([1.0, 0.0])
    bank_ND = torch.stack([right, torch.tensor([0.97, 0.243]), torch.tensor([0.9, 0.436]), torch.tensor([0.0, 1.0])])
    query, said = right[None], [[0]]
    assert nearest_wrong_terms(query, [0], torch.tensor([1.0]), bank_ND, said, 2).tolist() == [[2, 3]]
    assert nearest_wrong_terms(query, [0], torch.tensor([1.0]), bank_ND, said, 2, max_positive_ratio=0.99).tolist() == [
        [1, 2]
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_gives_the_same_table():
    query_QD, bank_ND = unit(50, 16), unit(300, 16, seed=1)
    rest = (torch.full((50,), 0.6), bank_ND, [[clip] for clip in range(50)], 5)
    on_device = nearest_wrong_terms(query_QD.cuda(), range(50), *rest)
    np.testing.assert_array_equal(on_device, nearest_wrong_terms(query_QD, range(50), *rest))
