import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.evaluation import ranking
from qwen_term_retrieval.evaluation.ranking import (
    bootstrap_interval,
    mean_reciprocal_rank,
    rank_of_each_gold,
    rank_of_gold,
    rank_of_gold_in_scores,
    recall_at_k,
)
from qwen_term_retrieval.retrieval import scoring


def plain_ranks(scores: np.ndarray, gold: list[list[int]]) -> list[list[int]]:
    """The definition, one comparison at a time."""
    ranks = []
    for row, right in zip(scores, gold, strict=True):
        wrong = [score for term, score in enumerate(row) if term not in right]
        ranks.append([1 + sum(score >= row[term] - ranking.TIE_TOLERANCE for score in wrong) for term in right])
    return ranks


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 3), st.integers(1, 50), st.integers(0, 10**6))
def test_ranks_follow_the_definition_whatever_the_blocks(num_queries, num_terms, num_windows, block, seed):
    generator = np.random.default_rng(seed)
    # Small integers make exact ties common.
    query_QWD = torch.from_numpy(generator.integers(-1, 2, (num_queries, num_windows, 4)).astype(np.float32))
    bank_ND = torch.from_numpy(generator.integers(-1, 2, (num_terms, 4)).astype(np.float32))
    mask_QW = torch.from_numpy(generator.random((num_queries, num_windows)) < 0.7)
    mask_QW[:, 0] = True
    gold = [
        generator.choice(num_terms, size=generator.integers(1, min(3, num_terms) + 1), replace=False).tolist()
        for _ in range(num_queries)
    ]
    scores_QWN = torch.einsum("qwd,nd->qwn", query_QWD, bank_ND).masked_fill(~mask_QW[:, :, None], -torch.inf)
    expected = plain_ranks(scores_QWN.amax(dim=1).numpy(), gold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "BLOCK_SCORES", block)
        patch.setattr(ranking, "_QUERY_BLOCK", 1 + block % 4)
        each = rank_of_each_gold(query_QWD, bank_ND, gold, window_mask=mask_QW)
        best = rank_of_gold(query_QWD, bank_ND, gold, window_mask=mask_QW)
    assert each.tolist() == [rank for ranks in expected for rank in ranks]
    assert best.tolist() == [min(ranks) for ranks in expected]
    assert rank_of_gold_in_scores(scores_QWN.amax(dim=1), gold).tolist() == best.tolist()


def test_a_model_that_scores_every_term_alike_is_last_not_first():
    bank = unit(1, 8).repeat(50, 1)
    assert rank_of_gold(unit(3, 8), bank, [[0], [20], [49]]).tolist() == [50, 50, 50]


def test_a_second_copy_of_the_right_term_under_another_row_counts_as_a_tie():
    bank = unit(1000, 64)
    bank[999] = bank[3]
    assert rank_of_gold(bank[3:4], bank, [[3]]).tolist() == [2]


def test_right_terms_of_one_clip_do_not_push_each_other_down():
    bank = torch.eye(4)
    query = torch.tensor([[0.9, 0.8, 0.1, 0.85]])
    assert rank_of_each_gold(query, bank, [[0, 1]]).tolist() == [1, 2]
    assert rank_of_gold(query, bank, [[0, 1]]).tolist() == [1]


def test_a_half_precision_bank_is_scored_in_single_precision():
    bank = unit(300, 32)
    gold = [[row] for row in range(20)]
    assert rank_of_gold(bank[:20], bank.half(), gold).tolist() == [1] * 20


def test_a_masked_window_is_never_the_best_one():
    bank = torch.eye(3)
    query = torch.stack([torch.tensor([0.0, 0.5, 0.4]), torch.tensor([9.0, 0.0, 0.0])])[None]
    assert rank_of_gold(query, bank, [[1]]).tolist() == [2]
    assert rank_of_gold(query, bank, [[1]], window_mask=torch.tensor([[True, False]])).tolist() == [1]


@pytest.mark.parametrize(
    ("queries", "bank", "gold", "message"),
    [
        (unit(2, 4), unit(5, 3), [[0], [0]], r"\(2, 1, 4\) do not fit bank vectors \(5, 3\)"),
        (unit(2, 4), unit(5, 4), [[0]], "2 queries but 1 lists"),
        (unit(2, 4), unit(5, 4), [[0], []], "query 1 has no right term"),
        (unit(2, 4), unit(5, 4), [[0], [5]], "query 1.*outside the bank of 5"),
        (unit(2, 4) * torch.nan, unit(5, 4), [[0], [1]], "a query vector is not finite"),
        (unit(2, 4), unit(5, 4) / 0.0, [[0], [1]], "a bank vector is not finite"),
    ],
)
def test_bad_rankings_are_refused_with_the_row(queries, bank, gold, message):
    with pytest.raises(ValueError, match=message):
        rank_of_gold(queries, bank, gold)


def test_a_clip_without_a_window_is_refused():
    with pytest.raises(ValueError, match="query 1 has no window"):
        rank_of_gold(unit(2, 2, 4), unit(5, 4), [[0], [1]], window_mask=torch.tensor([[True, True], [False, False]]))


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="without NaN"):
        rank_of_gold_in_scores([[0.1, float("nan")]], [[0]])


def test_recall_and_mean_reciprocal_rank_count_from_one():
    assert recall_at_k([1, 2, 10, 11], 1) == 0.25
    assert recall_at_k([1, 2, 10, 11], 10) == 0.75
    assert mean_reciprocal_rank([1, 4]) == pytest.approx(0.625)
    with pytest.raises(ValueError, match="count from 1"):
        recall_at_k([0, 1], 1)
    with pytest.raises(ValueError, match="at least one rank"):
        mean_reciprocal_rank([])


def test_the_bootstrap_interval_is_seeded_and_close_to_the_normal_one():
    values = np.random.default_rng(1).random(400) < 0.8
    low, high = bootstrap_interval(values, seed=7)
    assert (low, high) == bootstrap_interval(values, seed=7)
    assert (low, high) != bootstrap_interval(values, seed=8)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_a_wider_confidence_gives_a_wider_interval():
    values = np.arange(100) % 3
    narrow, wide = (bootstrap_interval(values, confidence=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]


@pytest.mark.parametrize("values", [[], [0.5, float("nan")], [[1.0, 2.0]]])
def test_the_bootstrap_refuses_what_has_no_mean(values):
    with pytest.raises(ValueError, match="finite value"):
        bootstrap_interval(values)
