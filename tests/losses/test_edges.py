"""Where a contrastive loss breaks: sharp temperatures, half precision, nothing to compare with, unequal ranks."""

import doctest
import math

import pytest
import torch
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F

from qwen_term_retrieval.losses import contrastive, hard_negatives, no_term, pairs, sigmoid, windows
from qwen_term_retrieval.losses.contrastive import Candidates, Queries, contrastive_loss
from qwen_term_retrieval.losses.hard_negatives import hard_negative_loss
from qwen_term_retrieval.losses.no_term import no_term_loss
from qwen_term_retrieval.losses.sigmoid import sigmoid_loss

LOSSES = ["contrastive", "sigmoid", "no-term", "hard", "hard-sigmoid"]


def loss_of(name, queries, terms, scale, bias, wrong=None, wrong_QK=None, **settings):
    if name == "contrastive":
        return contrastive_loss(queries, terms.gather(), scale, **settings)
    if name == "sigmoid":
        return sigmoid_loss(queries, terms.gather(), scale, bias, **settings)
    if name == "no-term":
        return no_term_loss(queries, terms.gather(), scale, 0.2, **settings)
    bias = bias if name == "hard-sigmoid" else None
    return hard_negative_loss(queries, terms, wrong, wrong_QK, scale, bias, **settings)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


class Case:
    """Queries of two windows each, their terms and wrong terms, in any precision."""

    def __init__(self, vectors_VD, terms_ND, positive, neutral, scale, bias=-3.0, dtype=torch.float64):
        num = len(positive)
        self.inputs = [
            vectors_VD.to(dtype).requires_grad_(),
            terms_ND.to(dtype).requires_grad_(),
            unit(5, terms_ND.shape[1], seed=9).to(dtype).requires_grad_(),
            torch.tensor(scale, dtype=dtype, requires_grad=True),
            torch.tensor(bias, dtype=dtype, requires_grad=True),
        ]
        self.windows_QW = torch.arange(len(vectors_VD)).view(num, -1) if num else torch.zeros(0, 1).long()
        self.positive_QP = torch.tensor(positive).view(num, -1) if num else torch.zeros(0, 1).long()
        self.neutral_QM = torch.tensor(neutral).view(num, -1) if num else torch.zeros(0, 1).long()
        self.ids_N = torch.arange(len(terms_ND))
        self.wrong_QK = 100 + (torch.arange(num)[:, None] + torch.arange(3)) % 5

    def value_and_gradients(self, name, **settings):
        vectors_VD, terms_ND, wrong_MD, scale, bias = self.inputs
        loss = loss_of(
            name,
            Queries(vectors_VD, self.windows_QW, self.positive_QP, self.neutral_QM),
            Candidates(terms_ND, self.ids_N),
            scale,
            bias,
            Candidates(wrong_MD, 100 + torch.arange(len(wrong_MD))),
            self.wrong_QK,
            **settings,
        )
        return [loss, *torch.autograd.grad(loss, self.inputs, allow_unused=True, materialize_grads=True)]


def adversarial(scale, dtype):
    """The same vector on both sides, its opposite, copies of one term under several ids, rows without a negative."""
    vectors_VD = unit(12, 8)
    terms_ND = torch.cat([vectors_VD[:3], -vectors_VD[:3], vectors_VD[:1], unit(3, 8, seed=1)])
    # Said: the opposite of what is heard; a copy of another term; everything (the last but one); nothing (the last).
    positive = [[3, -1], [0, 6], [1, -1], [2, 5], [0, 1], [-1, -1]]
    neutral = [[-1] * 8] * 4 + [list(range(2, 10))] + [[-1] * 8]
    return Case(vectors_VD, terms_ND, positive, neutral, scale, dtype=dtype)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("window_temperature", [None, 0.05])
@pytest.mark.parametrize("scale", [1.0, 59.0, 61.0, 100.0])
def test_single_precision_has_the_digits_of_double_at_any_temperature(name, window_temperature, scale):
    settings = {"window_temperature": window_temperature, "block_elements": 60}
    expected = adversarial(scale, torch.float64).value_and_gradients(name, **settings)
    found = adversarial(scale, torch.float32).value_and_gradients(name, **settings)
    assert expected[0].item() > 0
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, atol=2e-5 * other.abs().max().item() + 1e-7, rtol=0)


@pytest.mark.parametrize("name", ["sigmoid", "hard-sigmoid", "contrastive"])
def test_gradients_of_half_precision_scalars_are_summed_in_single_precision(name):
    """A model that is all bfloat16: block upon block, three digits would add up to two."""
    whole, half = (Case(unit(200, 8), unit(200, 8, seed=1), [[n] for n in range(200)], [[-1]] * 200, 8.0) for _ in "ab")
    half.inputs[3:] = [values.detach().bfloat16().requires_grad_() for values in half.inputs[3:]]
    expected = whole.value_and_gradients(name)
    found = half.value_and_gradients(name, block_elements=210)
    for one, other in zip(found[4:], expected[4:], strict=True):
        assert one.dtype == torch.bfloat16
        assert one.item() == pytest.approx(other.item(), rel=2**-8)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("window_temperature", [None, 0.05])
def test_one_clip_with_its_one_term_is_no_contrast_and_no_nan(name, window_temperature):
    case = Case(unit(2, 4), unit(1, 4, seed=1), [[0]], [[-1]], 100.0)
    loss, *gradients = case.value_and_gradients(name, window_temperature=window_temperature)
    assert all(values.isfinite().all() for values in [loss, *gradients])
    if name in ("contrastive", "no-term"):  # the only other term is its own
        assert loss.item() == 0
        assert not any(values.any() for values in gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_a_query_costs_nothing_with_a_gradient_path(name):
    for num_vectors in (0, 3):
        case = Case(unit(num_vectors, 4), unit(2, 4, seed=1), [], [], 10.0)
        loss, *gradients = case.value_and_gradients(name)
        assert loss.item() == 0
        assert not any(values.any() for values in gradients)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("place", [0, 1])
def test_a_broken_embedding_is_never_hidden(name, place):
    case = Case(unit(6, 4), unit(4, 4, seed=1), [[0], [1], [2]], [[-1]] * 3, 10.0)
    case.inputs[place].data[1, 2] = math.nan
    loss, *_ = case.value_and_gradients(name)
    hears_terms = name != "hard-sigmoid"
    assert loss.isnan().item() == (place == 0 or hears_terms)


def test_a_query_without_a_window_is_refused_by_hard_negatives_too():
    queries = Queries(torch.eye(2), torch.tensor([[0], [-1]]), torch.tensor([[7], [7]]), torch.tensor([[-1], [-1]]))
    term, wrong = (Candidates(torch.eye(2)[:1], torch.tensor([identity])) for identity in (7, 9))
    with pytest.raises(ValueError, match="a query has no window"):
        hard_negative_loss(queries, term, wrong, torch.tensor([[9], [9]]), torch.tensor(10.0))


def test_an_id_that_stands_twice_among_the_candidates_is_refused():
    case = Case(unit(6, 4), unit(4, 4, seed=1), [[0], [1], [2]], [[-1]] * 3, 10.0)
    queries = Queries(case.inputs[0], case.windows_QW, case.positive_QP, case.neutral_QM)
    repeated = Candidates(case.inputs[1], torch.tensor([0, 1, 2, 1]))
    with pytest.raises(ValueError, match="id 1 stands twice"):
        contrastive_loss(queries, repeated, case.inputs[3])
    assert contrastive_loss(queries, repeated.gather(), case.inputs[3]).isfinite()


# Spans of eight clips of a global batch, and how many clips each of two ranks holds.
CLIPS = 8
SHARES = {"uneven": (1, 7), "one without a clip": (8, 0)}


def of_clips(clips, towers):
    """Queries, terms and wrong terms of some clips; a clip has one to three spans, one term and two wrong ones."""
    spans = [(clip, place) for clip in clips for place in range(1 + clip % 3)]
    heard_VH = unit(CLIPS * 3, 6)[[3 * clip + place for clip, place in spans]].view(-1, 6)
    vectors_VD = F.normalize(towers[0](heard_VH), dim=-1)
    said = sorted({clip % 5 for clip in clips})
    wrong = sorted({(clip + place) % 7 for clip in clips for place in (0, 1)})
    clip_V = torch.tensor([clip for clip, _ in spans], dtype=torch.long)[:, None]
    queries = Queries(vectors_VD, torch.arange(len(spans))[:, None], clip_V % 5, (clip_V + 2) % 5)
    terms_ND, wrong_MD = (
        F.normalize(towers[1](unit(20, 6, seed=2)[rows].view(-1, 6)), dim=-1)
        for rows in (said, [12 + row for row in wrong])
    )
    wrong_QK = 100 + torch.cat([clip_V % 7, (clip_V + 1) % 7], 1)
    wrong_ids_N = 100 + torch.tensor(wrong, dtype=torch.long)
    return (
        queries,
        Candidates(terms_ND, torch.tensor(said, dtype=torch.long)),
        Candidates(wrong_MD, wrong_ids_N),
        wrong_QK,
    )


def gradients_of(clips, name):
    torch.manual_seed(0)
    towers = torch.nn.ModuleList([torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)]).double()
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    queries, terms, wrong, wrong_QK = of_clips(clips, towers)
    loss = loss_of(name, queries, terms, scale, bias, wrong, wrong_QK)
    leaves = [*towers.parameters(), scale, bias]
    return [loss.detach(), *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)]


def on_rank(process, init_file, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{init_file}", rank=process, world_size=2)
    for share, (first, second) in SHARES.items():
        clips = list(range(CLIPS))[:first] if process == 0 else list(range(CLIPS))[first : first + second]
        for name in LOSSES:
            found = gradients_of(clips, name)
            for values in found:
                torch.distributed.all_reduce(values)
            results[process, share, name] = [(values / 2).tolist() for values in found]
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(on_rank, (str(tmp_path_factory.mktemp("ranks") / "init"), results), nprocs=2)
        return dict(results)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("share", SHARES)
def test_ranks_with_unequal_numbers_of_spans_are_together_one(two_ranks, name, share):
    expected = gradients_of(list(range(CLIPS)), name)
    assert expected[0].item() > 0
    for process in range(2):
        for one, other in zip(two_ranks[process, share, name], expected, strict=True):
            torch.testing.assert_close(torch.tensor(one, dtype=torch.float64), other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("module", [contrastive, hard_negatives, no_term, pairs, sigmoid, windows])
def test_the_examples_of_the_losses_run(module):
    tried = doctest.testmod(module)
    assert tried.attempted
    assert not tried.failed
