"""Mined negatives: exactly the nearest terms, and never one that was said."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.training.negatives import nearest as mining
from qwen_term_retrieval.training.negatives.nearest import NO_TERM, nearest_wrong_terms
from tests.doubles.mined_by_hand import by_hand


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 40), st.integers(1, 6))
def test_the_table_is_what_scoring_everything_gives(seed, num_clips, num_terms, k):
    generator = np.random.default_rng(seed)
    clip_Q = np.sort(generator.integers(0, num_clips, size=12))
    query_QD, bank_ND = unit(12, 8, seed=seed), unit(num_terms, 8, seed=seed + 1)
    excluded = [generator.choice(num_terms, size=min(2, num_terms), replace=False).tolist() for _ in range(num_clips)]
    positive_Q = torch.tensor([(query_QD[q] @ bank_ND[excluded[c]].T).max() for q, c in enumerate(clip_Q)])
    positive_Q[::4] = -torch.inf
    table = nearest_wrong_terms(query_QD, clip_Q, positive_Q, bank_ND, excluded, k)
    assert table.dtype == np.int32
    assert table.tolist() == by_hand(query_QD, clip_Q, positive_Q, bank_ND, excluded, k, 0.95).tolist()


@pytest.mark.parametrize("queries_a_clip", [1, 3])
def test_blocks_do_not_show_in_the_result(monkeypatch, queries_a_clip):
    query_QD, bank_ND = unit(60, 16), unit(300, 16, seed=1)
    num_clips = 60 // queries_a_clip
    clip_Q = np.repeat(np.arange(num_clips), queries_a_clip)
    arguments = (query_QD, clip_Q, torch.full((60,), 0.6), bank_ND, [[clip] for clip in range(num_clips)], 5)
    whole = nearest_wrong_terms(*arguments)
    monkeypatch.setattr(mining, "_QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(mining, "_SCORES_AT_ONCE", 77)
    np.testing.assert_array_equal(nearest_wrong_terms(*arguments), whole)


def test_no_block_of_scores_outgrows_its_bound_however_many_windows_a_clip_has(monkeypatch):
    monkeypatch.setattr(mining, "_QUERIES_AT_ONCE", 8)
    monkeypatch.setattr(mining, "_SCORES_AT_ONCE", 200)
    seen = []
    plain = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda scores: seen.append(scores.shape) or plain(scores))
    clip_Q = [0, 1, 1, 1, 1, 1, 1, *[2] * 100]
    excluded = [[0], [1], [2]]
    table = nearest_wrong_terms(unit(107, 4), clip_Q, torch.full((107,), 0.9), unit(300, 4, seed=1), excluded, 3)
    assert (table >= 0).any()
    assert max(rows * columns for rows, columns in seen) <= 200
    assert max(rows for rows, _ in seen) == 100


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


def test_what_one_query_of_a_clip_takes_for_right_comes_back_through_no_other():
    # A clip says "write" and "left"; "right" sounds like the first.
    write, left, sepsis = unit(3, 16)
    left = torch.nn.functional.normalize(left + 0.5 * write, dim=0)
    bank_ND = torch.stack([write, left, write, sepsis])
    assert nearest_wrong_terms(bank_ND[:2], [0, 0], torch.ones(2), bank_ND, [[0, 1]], 2).tolist() == [[3, NO_TERM]]
    assert nearest_wrong_terms(bank_ND[1:2], [0], torch.ones(1), bank_ND, [[0, 1]], 2).tolist() == [[2, 3]]


def test_terms_of_one_score_come_in_the_order_of_the_bank():
    bank_ND = unit(1, 8).expand(6, 8)
    arguments = (unit(1, 8, seed=1), [0], torch.tensor([-torch.inf]), bank_ND)
    assert nearest_wrong_terms(*arguments, [[2]], 6).tolist() == [[0, 1, 3, 4, 5, NO_TERM]]


def test_queries_whose_clips_do_not_ascend_are_refused():
    with pytest.raises(ValueError, match="must ascend"):
        nearest_wrong_terms(unit(3, 8), [0, 1, 0], torch.ones(3), unit(4, 8), [[0], [1]], 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_gives_the_same_table():
    query_QD, bank_ND = unit(50, 16), unit(300, 16, seed=1)
    rest = (torch.full((50,), 0.6), bank_ND, [[clip] for clip in range(50)], 5)
    on_device = nearest_wrong_terms(query_QD.cuda(), range(50), *rest)
    np.testing.assert_array_equal(on_device, nearest_wrong_terms(query_QD, range(50), *rest))
