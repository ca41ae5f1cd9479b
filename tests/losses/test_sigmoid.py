"""The sigmoid loss: pairs judged one by one, under the same masks as InfoNCE."""

import pytest
import torch
import torch.nn.functional as F

from qwen_term_retrieval.losses.contrastive import Candidates
from qwen_term_retrieval.losses.sigmoid import sigmoid_loss
from tests.doubles.loss_batch import contains, make_batch

BIAS = -3.0


def every_pair(queries, candidates, scale, bias):
    scores_QWN = scale * queries.vectors_VD[queries.windows_QW] @ candidates.vectors_ND.T
    logits_QN = scores_QWN.masked_fill((queries.windows_QW < 0)[..., None], -torch.inf).amax(1) + bias
    positive_QN = contains(queries.positive_ids_QP, candidates.ids_N)
    neutral_QN = contains(queries.neutral_ids_QM, candidates.ids_N) & ~positive_QN
    signs_QN = torch.where(positive_QN, 1.0, -1.0)
    return (-F.logsigmoid(signs_QN * logits_QN) * ~neutral_QN).sum() / len(logits_QN)


@pytest.mark.parametrize("num_windows", [1, 3])
@pytest.mark.parametrize("block_elements", [1, 40, 10**6])
def test_blocks_give_the_loss_and_gradients_of_every_pair(num_windows, block_elements):
    queries, candidates, scale = make_batch(7, num_windows, 9)
    bias = torch.tensor(BIAS, dtype=torch.float64, requires_grad=True)
    inputs = (queries.vectors_VD, candidates.vectors_ND, scale, bias)
    expected = every_pair(queries, candidates, scale, bias)
    found = sigmoid_loss(queries, candidates, scale, bias, block_elements=block_elements)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_a_neutral_term_costs_nothing_whatever_its_score():
    queries, candidates, scale = make_batch(1, 1, 2)
    queries.positive_ids_QP = candidates.ids_N[None, :1]
    queries.neutral_ids_QM = candidates.ids_N[None, 1:]
    moved = Candidates(torch.stack([candidates.vectors_ND[0], queries.vectors_VD[0]]).detach(), candidates.ids_N)
    bias = torch.tensor(0.0)
    assert sigmoid_loss(queries, candidates, scale, bias) == sigmoid_loss(queries, moved, scale, bias)


def test_no_query_and_no_candidate_cost_nothing():
    queries, candidates, scale = make_batch(2, 1, 2)
    none = Candidates(candidates.vectors_ND[:0], candidates.ids_N[:0])
    loss = sigmoid_loss(queries, none, scale, torch.tensor(BIAS))
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(queries.vectors_VD.grad, torch.zeros_like(queries.vectors_VD))
