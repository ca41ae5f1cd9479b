"""Scores in blocks: the loss and gradients of the whole table, without the whole table."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from qwen_term_retrieval.losses.contrastive import Candidates, Queries, contrastive_loss
from qwen_term_retrieval.losses.pairs import matching_pairs, positions_of
from qwen_term_retrieval.losses.sigmoid import sigmoid_loss
from qwen_term_retrieval.losses.windows import reduce_windows_
from qwen_term_retrieval.runs.memory import LiveMemory
from tests.doubles.loss_batch import contains, make_batch


def whole_table_loss(queries, candidates, logit_scale):
    """The definition of the loss, with every score and every mask written out."""
    scores_QWN = logit_scale * queries.vectors_VD[queries.windows_QW] @ candidates.vectors_ND.T
    logits_QN = scores_QWN.masked_fill((queries.windows_QW < 0)[..., None], -torch.inf).amax(1)
    positive_QN = contains(queries.positive_ids_QP, candidates.ids_N)
    neutral_QN = contains(queries.neutral_ids_QM, candidates.ids_N) & ~positive_QN
    losses = []
    for logits, positive, neutral in [(logits_QN, positive_QN, neutral_QN), (logits_QN.T, positive_QN.T, neutral_QN.T)]:
        rows = [
            torch.stack([-F.log_softmax(torch.cat([s[None], row[~p & ~n]]), 0)[0] for s in row[p]]).mean()
            for row, p, n in zip(logits, positive, neutral, strict=True)
            if p.any()
        ]
        losses.append(torch.stack(rows).mean() if rows else logits.sum() * 0)
    return sum(losses) / 2


def value_and_gradients(loss, queries, candidates, scale):
    return [loss.detach(), *torch.autograd.grad(loss, (queries.vectors_VD, candidates.vectors_ND, scale))]


# At a scale of 100 exponentials leave the range of single precision, so they are taken in another way.
@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 80),
    st.integers(0, 2**16),
    st.sampled_from([0.5, 12.0, 100.0]),
)
@example(6, 1, 4, 1, 652, 12.0)
def test_blocks_give_the_loss_and_gradients_of_the_whole_table(Q, W, N, block_elements, seed, scale):
    batch = make_batch(Q, W, N, seed, scale=scale)
    expected = value_and_gradients(whole_table_loss(*batch), *batch)
    found = value_and_gradients(contrastive_loss(*batch, block_elements=block_elements), *batch)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


@pytest.mark.parametrize("num_windows", [1, 4])
@pytest.mark.parametrize("scale", [12.0, 100.0])
def test_soft_windows_have_the_right_gradients_even_of_the_temperature(num_windows, scale):
    queries, candidates, scale = make_batch(5, num_windows, 6, scale=scale)

    def loss(vectors, bank, scale):
        soft = Queries(vectors, queries.windows_QW, queries.positive_ids_QP, queries.neutral_ids_QM)
        return contrastive_loss(
            soft, Candidates(bank, candidates.ids_N), scale, window_temperature=0.2, block_elements=50
        )

    assert torch.autograd.gradcheck(loss, (queries.vectors_VD, candidates.vectors_ND, scale))


def test_half_precision_embeddings_are_scored_in_single_precision():
    queries, candidates, scale = make_batch(20, 1, 20, dim=32)
    half = Queries(
        queries.vectors_VD.detach().bfloat16().requires_grad_(),
        queries.windows_QW,
        queries.positive_ids_QP,
        queries.neutral_ids_QM,
    )
    bank = Candidates(candidates.vectors_ND.detach().bfloat16(), candidates.ids_N)
    rounded = Queries(half.vectors_VD.detach().double(), half.windows_QW, half.positive_ids_QP, half.neutral_ids_QM)
    expected = contrastive_loss(rounded, Candidates(bank.vectors_ND.double(), bank.ids_N), scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(half, bank, scale.float())
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert half.vectors_VD.grad.dtype == torch.bfloat16


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest tensor had that any operation made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize(("num_windows", "window_temperature"), [(1, None), (3, None), (3, 0.1)])
def test_no_tensor_is_ever_larger_than_a_block_or_the_embeddings(num_windows, window_temperature):
    batch = make_batch(300, num_windows, 300)
    embeddings = max(batch[0].vectors_VD.numel(), batch[1].vectors_ND.numel())
    with LargestTensor() as largest:
        loss = contrastive_loss(*batch, window_temperature=window_temperature, block_elements=4_000)
        loss.backward()
    assert largest.elements <= max(embeddings, 4_000)
    with LargestTensor() as largest:
        contrastive_loss(*batch, block_elements=10**9).backward()
    assert largest.elements >= 300 * 300


def peak_of_loss(loss, block_elements, *, num_windows=1, window_temperature=None, num=2048, dim=384):
    """Bytes alive at the fullest moment of forward and backward, embeddings included, and those of the embeddings.

    Blocks and embeddings have the proportions of 16,384 queries and terms in blocks of 4 M scores.
    """
    scale, bias = torch.tensor(14.3, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    ids_Q1 = torch.arange(num)[:, None]
    with LiveMemory() as live:
        vectors_VD, bank_ND = (
            F.normalize(torch.randn(rows, dim), dim=-1).requires_grad_() for rows in (num * num_windows, num)
        )
        embeddings = live.now
        queries = Queries(vectors_VD, torch.arange(num * num_windows).view(num, num_windows), ids_Q1, ids_Q1)
        candidates = Candidates(bank_ND, ids_Q1[:, 0])
        live.peak = live.now
        settings = {"window_temperature": window_temperature, "block_elements": block_elements}
        if loss == "infonce":
            contrastive_loss(queries, candidates, scale, **settings).backward()
        else:
            sigmoid_loss(queries, candidates, scale, bias, **settings).backward()
    return live.peak, embeddings


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
@pytest.mark.parametrize(
    ("num_windows", "window_temperature"), [(1, None), (2, None), (2, 0.1), (3, None), (3, 0.1), (12, 0.1)]
)
def test_the_loss_holds_the_embeddings_their_gradients_and_little_more_than_a_block(
    loss, num_windows, window_temperature
):
    windows = {"num_windows": num_windows, "window_temperature": window_temperature}
    block = 2**19
    peak, embeddings = peak_of_loss(loss, block, **windows)
    assert 2 * embeddings < peak <= 1.3 * (2 * embeddings + 4 * block)
    # What stands beside the gradients it gives back: the embeddings it was given and one block.
    assert peak - embeddings <= 1.3 * (embeddings + 4 * block)


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_in_one_block_it_holds_the_whole_table(loss):
    peak, embeddings = peak_of_loss(loss, 10**9)
    assert peak > 1.3 * (2 * embeddings + 4 * 2**19)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 4), st.sampled_from([None, 1e-3, 0.5, 20.0]), st.integers())
def test_windows_are_reduced_in_place_with_the_gradients_of_the_definition(R, W, N, softness, seed):
    generator = torch.Generator().manual_seed(seed % 2**32)
    # Few distinct scores, so that windows are often best together.
    scores = torch.randint(-3, 4, (R, W, N), generator=generator).double().requires_grad_()
    mask = torch.arange(W) < torch.randint(1, W + 1, (R, 1), generator=generator)
    softness = None if softness is None else torch.tensor(softness, dtype=torch.float64)
    there = scores.masked_fill(~mask[..., None], -torch.inf)
    if softness is None:
        expected = there.amax(1)
    else:
        expected = softness * ((there / softness).logsumexp(1) - mask.sum(1, keepdim=True).double().log())
    (shares,) = torch.autograd.grad(expected.sum(), scores)
    overwritten = scores.detach().clone()
    torch.testing.assert_close(reduce_windows_(overwritten, mask, softness, leave_shares=True), expected.detach())
    torch.testing.assert_close(overwritten if W > 1 else torch.ones_like(shares), shares)


def test_a_query_without_a_window_is_refused():
    queries, candidates, scale = make_batch(3, 2, 4)
    queries.windows_QW[1] = -1
    with pytest.raises(ValueError, match="has no window"):
        contrastive_loss(queries, candidates, scale)


def test_padding_ids_match_nothing_and_a_repeated_id_is_one_pair():
    ids = torch.tensor([[-1, 2, 2], [3, -1, 0]])
    assert positions_of(ids, torch.tensor([0, 2, 3])).tolist() == [[-1, 1, 1], [2, -1, 0]]
    pairs = matching_pairs(ids, torch.tensor([0, 2, 3]))
    assert pairs.query_P.tolist() == [0, 1, 1]
    assert pairs.candidate_P.tolist() == [1, 0, 2]


def test_queries_of_known_span_are_not_padded_to_the_windows_of_the_others():
    queries, candidates, scale = make_batch(60, 50, 40)
    queries.windows_QW[:58, 1:] = -1
    with LargestTensor() as largest:
        contrastive_loss(queries, candidates, scale).backward()
    vectors = queries.vectors_VD.numel()
    assert largest.elements <= max(vectors, 58 * 40, 2 * 50 * 40) < 60 * 50 * 40
