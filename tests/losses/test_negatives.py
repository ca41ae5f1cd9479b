"""Hard negatives, clips without a term, soft windows, and the objective that adds them up."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qwen_term_retrieval.losses.contrastive import Candidates, Queries
from qwen_term_retrieval.losses.hard_negatives import hard_negative_loss
from qwen_term_retrieval.losses.no_term import no_term_loss
from qwen_term_retrieval.losses.objective import Embeddings, Objective
from qwen_term_retrieval.losses.windows import reduce_windows_
from tests.doubles.loss_batch import make_batch

SCALE = torch.tensor(10.0, dtype=torch.float64)


def unit(*rows):
    return F.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1).requires_grad_()


def one_window(vectors_QD, positive, neutral=None):
    neutral = [[-1]] * len(positive) if neutral is None else neutral
    windows = torch.arange(len(vectors_QD))[:, None]
    return Queries(vectors_QD, windows, torch.tensor(positive), torch.tensor(neutral))


# ---- hard negatives -------------------------------------------------------------------------------------------


def test_a_query_is_compared_with_its_own_hard_negatives_alone():
    queries = one_window(unit([1.0, 0.2], [0.1, 1.0]), [[1], [2]])
    terms = Candidates(unit([1.0, 0.0], [0.0, 1.0]), torch.tensor([1, 2]))
    negatives = Candidates(unit([0.9, 0.4], [0.3, 0.9]), torch.tensor([7, 8]))
    loss = hard_negative_loss(queries, terms, negatives, torch.tensor([[7], [8]]), SCALE)
    scores = SCALE * queries.vectors_VD @ torch.cat([terms.vectors_ND, negatives.vectors_ND]).T
    expected = [F.softplus(scores[0, 2] - scores[0, 0]), F.softplus(scores[1, 3] - scores[1, 1])]
    assert loss.item() == pytest.approx((sum(expected) / 2).item(), abs=1e-12)


def test_gradients_reach_the_hard_negatives_and_push_them_away():
    queries = one_window(unit([1.0, 0.2]), [[1]])
    terms = Candidates(unit([1.0, 0.0]), torch.tensor([1]))
    negatives = Candidates(unit([0.9, 0.4]), torch.tensor([7]))
    hard_negative_loss(queries, terms, negatives, torch.tensor([[7]]), SCALE).backward()
    assert (negatives.vectors_ND.grad @ queries.vectors_VD[0]).item() > 0


def test_a_hard_negative_that_is_said_in_the_clip_is_left_out():
    queries = one_window(unit([1.0, 0.2], [0.1, 1.0]), [[1], [2]], [[7], [-1]])
    terms = Candidates(unit([1.0, 0.0], [0.0, 1.0]), torch.tensor([1, 2]))
    negatives = Candidates(unit([0.9, 0.4], [0.3, 0.9], [1.0, 0.0]), torch.tensor([7, 8, 1]))
    with_own = hard_negative_loss(queries, terms, negatives, torch.tensor([[7, 8, 1], [8, -1, -1]]), SCALE)
    without = hard_negative_loss(queries, terms, negatives, torch.tensor([[8], [8]]), SCALE)
    assert with_own.item() == pytest.approx(without.item(), abs=1e-12)


@pytest.mark.parametrize("bias", [None, torch.tensor(-2.0, dtype=torch.float64)])
@pytest.mark.parametrize("num_windows", [1, 3])
def test_blocks_of_queries_change_neither_loss_nor_gradients(num_windows, bias):
    queries, terms, scale = make_batch(9, num_windows, 8)
    negatives = Candidates(make_batch(1, 1, 12, seed=3)[1].vectors_ND, torch.arange(100, 112))
    chosen = torch.randint(99, 112, (9, 4), generator=torch.Generator().manual_seed(0))
    chosen[chosen == 99] = -1
    inputs = (queries.vectors_VD, terms.vectors_ND, negatives.vectors_ND, scale)
    found = []
    for block_elements in (1, 60, 10**6):
        loss = hard_negative_loss(
            queries, terms, negatives, chosen, scale, bias, window_temperature=0.1, block_elements=block_elements
        )
        found.append([loss, *torch.autograd.grad(loss, inputs, allow_unused=True)])
    assert found[0][0].item() > 0
    for other in found[1:]:
        for one, another in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, another, atol=1e-12, rtol=0)


@pytest.mark.parametrize("bias", [None, torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)])
@pytest.mark.parametrize(("num_windows", "window_temperature"), [(1, None), (3, None), (3, 0.1)])
def test_gradients_of_hard_negatives_are_those_of_the_definition(num_windows, window_temperature, bias):
    queries, terms, scale = make_batch(5, num_windows, 6)
    negatives = Candidates(make_batch(1, 1, 12, seed=3)[1].vectors_ND, torch.arange(100, 112))
    chosen = torch.randint(100, 112, (5, 4), generator=torch.Generator().manual_seed(0))
    chosen[2:, 3], chosen[1] = -1, -1
    given = (queries.vectors_VD, terms.vectors_ND, negatives.vectors_ND, scale)

    def loss(vectors, terms_ND, negatives_ND, scale, bias=None):
        said = Queries(vectors, queries.windows_QW, queries.positive_ids_QP, queries.neutral_ids_QM)
        own, wrong = Candidates(terms_ND, terms.ids_N), Candidates(negatives_ND, negatives.ids_N)
        return hard_negative_loss(
            said, own, wrong, chosen, scale, bias, window_temperature=window_temperature, block_elements=60
        )

    assert torch.autograd.gradcheck(loss, given if bias is None else (*given, bias))


class LargeTensors(TorchDispatchMode):
    """Counts the new tensors of at least so many elements that operations make."""

    def __init__(self, elements):
        super().__init__()
        self.elements = elements
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        given, made = (
            {leaf.data_ptr() for leaf in tree_leaves(values) if torch.is_tensor(leaf) and leaf.numel() >= self.elements}
            for values in ((args, kwargs), out)
        )
        self.count += len(made - given)
        return out


def test_the_gradient_of_the_bank_is_made_once_however_many_blocks_there_are():
    queries, terms, scale = make_batch(40, 1, 8)
    negatives = Candidates(make_batch(1, 1, 200, seed=3)[1].vectors_ND, torch.arange(100, 300))
    chosen = torch.arange(100, 260).view(40, 4)
    made = []
    for block_elements in (60, 300):
        with LargeTensors(negatives.vectors_ND.numel()) as large:
            hard_negative_loss(queries, terms, negatives, chosen, scale, block_elements=block_elements).backward()
        made.append(large.count)
    assert 0 < made[0] == made[1]


def test_the_sigmoid_form_judges_each_hard_negative_by_itself():
    queries = one_window(unit([1.0, 0.2]), [[1]])
    terms = Candidates(unit([1.0, 0.0]), torch.tensor([1]))
    negatives = Candidates(unit([0.9, 0.4], [0.3, 0.9]), torch.tensor([7, 8]))
    loss = hard_negative_loss(queries, terms, negatives, torch.tensor([[7, 8]]), SCALE, torch.tensor(-2.0))
    scores = SCALE * queries.vectors_VD[0] @ negatives.vectors_ND.T
    assert loss.item() == pytest.approx(F.softplus(scores - 2).sum().item(), abs=1e-12)


def test_without_any_hard_negative_the_loss_is_zero_with_a_gradient_path():
    queries, terms, scale = make_batch(3, 1, 4)
    none = Candidates(terms.vectors_ND[:0], terms.ids_N[:0])
    loss = hard_negative_loss(queries, terms, none, torch.full((3, 1), -1), scale)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(queries.vectors_VD.grad, torch.zeros_like(queries.vectors_VD))


def test_a_hard_negative_that_was_not_embedded_is_refused():
    queries, terms, scale = make_batch(1, 1, 4)
    with pytest.raises(ValueError, match="not among the embedded hard negatives"):
        hard_negative_loss(queries, terms, terms, torch.tensor([[10_000]]), scale)


# ---- clips without a term -------------------------------------------------------------------------------------


def test_a_clip_without_a_term_chooses_nothing_among_all_terms():
    clips = one_window(unit([1.0, 0.3]), [[-1]])
    terms = Candidates(unit([1.0, 0.0], [0.0, 1.0]), torch.tensor([1, 2]))
    scores = SCALE * clips.vectors_VD[0] @ terms.vectors_ND.T
    nothing = SCALE * 0.2
    expected = -torch.log(nothing.exp() / (nothing.exp() + scores.exp().sum()))
    assert no_term_loss(clips, terms, SCALE, 0.2).item() == pytest.approx(expected.item(), abs=1e-12)


def test_the_best_window_of_a_clip_without_a_term_is_pushed_from_the_nearest_term():
    clips = Queries(unit([0.0, 1.0], [1.0, 0.1]), torch.tensor([[0, 1]]), torch.tensor([[-1]]), torch.tensor([[-1]]))
    terms = Candidates(unit([1.0, 0.0]), torch.tensor([1]))
    no_term_loss(clips, terms, SCALE, 0.2).backward()
    pushed = clips.vectors_VD.grad @ terms.vectors_ND[0]
    assert pushed[1] > 0
    assert pushed[0] == 0


def test_a_term_that_the_text_says_is_never_pushed_down():
    terms = Candidates(unit([1.0, 0.0]), torch.tensor([1]))
    said = no_term_loss(one_window(unit([1.0, 0.3]), [[-1]], [[1]]), terms, SCALE, 0.2)
    said.backward()
    assert said.item() == 0
    assert torch.equal(terms.vectors_ND.grad, torch.zeros_like(terms.vectors_ND))


# ---- soft windows ---------------------------------------------------------------------------------------------


def test_a_soft_maximum_lies_between_mean_and_best_and_ends_at_the_best():
    scores = torch.tensor([[[0.9], [0.1], [0.2], [5.0]]])
    mask = torch.tensor([[True, True, True, False]])
    soft = [reduce_windows_(scores.clone(), mask, softness).item() for softness in (1e3, 0.1, 1e-4)]
    assert soft[0] == pytest.approx(0.4, abs=1e-3)
    assert soft[0] < soft[1] < soft[2] == pytest.approx(0.9, abs=1e-3)


def test_a_query_of_known_span_keeps_its_score():
    scores = torch.tensor([[[0.7, -0.3]]])
    assert torch.equal(reduce_windows_(scores, torch.ones(1, 1).bool(), 0.1), scores[:, 0])
    padded = torch.cat([scores, torch.zeros_like(scores)], 1)
    soft = reduce_windows_(padded, torch.tensor([[True, False]]), 0.1)
    torch.testing.assert_close(soft, scores[:, 0])


# ---- the objective --------------------------------------------------------------------------------------------


def make_objective_batch():
    torch.manual_seed(0)
    audio, texts = torch.randn(6, 4).double(), torch.randn(5, 4).double()
    embeddings = Embeddings(
        F.normalize(audio, dim=-1).requires_grad_(),
        F.normalize(texts, dim=-1).requires_grad_(),
        torch.tensor(10.0, dtype=torch.float64, requires_grad=True),
        torch.tensor(-5.0, dtype=torch.float64, requires_grad=True),
    )
    ids = torch.tensor([[11], [12]])
    none = torch.full((2, 1), -1)
    batch = {
        "text_queries": {"windows_QW": torch.tensor([[0], [1]]), "positive_ids_QP": ids, "neutral_ids_QM": none},
        "term_queries": {
            "windows_QW": torch.tensor([[2, 3], [4, -1]]),
            "positive_ids_QP": ids,
            "neutral_ids_QM": none,
            "negative_ids_QK": torch.tensor([[14], [14]]),
        },
        "no_term_queries": {
            "windows_QW": torch.tensor([[5]]), "positive_ids_QP": none[:1], "neutral_ids_QM": none[:1]
        },
        "text_candidates": {"ids_N": torch.tensor([11, 12]), "rows_N": torch.tensor([0, 1])},
        "term_candidates": {"ids_N": torch.tensor([11, 12, 13]), "rows_N": torch.tensor([0, 2, 3])},
        "hard_negatives": {"ids_N": torch.tensor([14]), "rows_N": torch.tensor([4])},
    }  # fmt: skip
    return embeddings, batch


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
@pytest.mark.parametrize("window_temperature", [None, 0.05])
def test_the_objective_is_the_weighted_sum_of_its_parts_and_reaches_every_embedding(loss, window_temperature):
    embeddings, batch = make_objective_batch()
    objective = Objective(loss, 0.3, 0.7, 0.2, 0.5, window_temperature=window_temperature)
    losses = objective(embeddings, batch)
    weighted = {"audio_text_loss": 0.3, "audio_term_loss": 0.7, "hard_negative_loss": 0.2, "no_term_loss": 0.5}
    assert objective.parts == weighted
    assert losses["loss"].item() == pytest.approx(sum(w * losses[n].item() for n, w in weighted.items()), abs=1e-12)
    losses["loss"].backward()
    assert embeddings.audio_PD.grad.abs().sum(1).gt(0).all()
    assert embeddings.text_ND.grad.abs().sum(1).gt(0).all()
    assert embeddings.logit_scale.grad.abs() > 0
    assert (embeddings.logit_bias.grad is None) == (loss == "infonce")


def test_by_default_neither_hard_negatives_nor_no_term_clips_are_asked_of_the_batch():
    embeddings, batch = make_objective_batch()
    del batch["hard_negatives"], batch["no_term_queries"], batch["term_queries"]["negative_ids_QK"]
    assert math.isfinite(Objective()(embeddings, batch)["loss"].item())
    with pytest.raises(ValueError, match="logit_bias"):
        Objective("sigmoid")(embeddings._replace(logit_bias=None), batch)
    with pytest.raises(ValueError, match="loss must be one of"):
        Objective("triplet")
    with pytest.raises(ValueError, match="window_temperature must be above 0"):
        Objective(window_temperature=0.0)
