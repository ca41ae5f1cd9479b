"""The contrastive loss: what is positive, neutral, negative, and that two ranks equal one."""

import math

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch.nn.functional import normalize

from qwen_term_retrieval.distributed import gather_rows
from qwen_term_retrieval.losses.contrastive import Candidates, Queries, contrastive_loss, first_occurrences

SCALE = torch.tensor(10.0)


def unit_rows(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def make_queries(vectors, positive, neutral=None):
    vectors = vectors[:, None] if vectors.ndim == 2 else vectors
    neutral = [[-1]] * len(positive) if neutral is None else neutral
    windows = torch.arange(vectors.shape[0] * vectors.shape[1]).view(vectors.shape[:2])
    return Queries(vectors.flatten(0, 1), windows, torch.tensor(positive), torch.tensor(neutral))


def test_one_positive_a_query_is_symmetric_cross_entropy():
    audio, text = unit_rows(6, 8), unit_rows(6, 8, seed=1)
    ids = torch.arange(6)
    logits = (SCALE * audio @ text.T).float()
    expected = (torch.nn.functional.cross_entropy(logits, ids) + torch.nn.functional.cross_entropy(logits.T, ids)) / 2
    assert contrastive_loss(make_queries(audio, ids[:, None].tolist()), Candidates(text, ids), SCALE) == pytest.approx(
        expected.item(), abs=1e-6
    )


def test_two_positives_do_not_compete_with_each_other():
    audio = normalize(torch.tensor([[1.0, 1.0, 0.0]]), dim=-1)
    terms = torch.eye(3)
    loss = contrastive_loss(make_queries(audio, [[0, 1]]), Candidates(terms, torch.arange(3)), torch.tensor(100.0))
    assert loss.item() < 1e-6


def test_a_term_is_never_a_negative_for_a_clip_that_contains_it():
    audio = torch.eye(3)[:1]
    terms = torch.stack([torch.eye(3)[0], torch.eye(3)[0], torch.eye(3)[2]])
    ids = torch.tensor([4, 5, 6])
    candidates = Candidates(terms, ids)
    as_negative = contrastive_loss(make_queries(audio, [[4]]), candidates, SCALE)
    as_neutral = contrastive_loss(make_queries(audio, [[4]], [[5]]), candidates, SCALE)
    assert as_negative.item() > math.log(2) / 2
    assert as_neutral.item() < 1e-3


def test_the_best_window_counts_and_padding_never_does():
    vectors = torch.zeros(1, 3, 4)
    vectors[0, 1, 0] = 1.0
    vectors[0, 2, 1] = 1.0
    queries = make_queries(vectors, [[0]])
    queries.windows_QW[0, 2] = -1
    terms = torch.eye(4)[:2]
    loss = contrastive_loss(queries, Candidates(terms, torch.arange(2)), torch.tensor(50.0))
    assert loss.item() < 1e-6


def test_a_batch_without_any_positive_costs_nothing_and_keeps_gradients_finite():
    audio = unit_rows(3, 4).requires_grad_()
    candidates = Candidates(unit_rows(2, 4), torch.tensor([1, 2]))
    loss = contrastive_loss(make_queries(audio, [[-1]] * 3), candidates, SCALE)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(audio.grad, torch.zeros_like(audio))


def test_a_row_with_nothing_but_positives_costs_nothing_and_sends_no_nan():
    audio = unit_rows(2, 4).requires_grad_()
    candidates = Candidates(unit_rows(1, 4), torch.tensor([1]))
    loss = contrastive_loss(make_queries(audio, [[1], [1]]), candidates, SCALE)
    loss.backward()
    assert loss.item() == 0
    assert audio.grad.isfinite().all()


def test_first_occurrences_keeps_the_order():
    assert first_occurrences(torch.tensor([7, 3, 7, 9, 3])).tolist() == [0, 1, 3]
    assert first_occurrences(torch.empty(0, dtype=torch.long)).tolist() == []


def test_a_batch_without_any_candidate_costs_nothing():
    audio = unit_rows(3, 4).requires_grad_()
    empty = Candidates(torch.empty(0, 4, dtype=torch.float64), torch.empty(0, dtype=torch.long))
    loss = contrastive_loss(make_queries(audio, [[1]] * 3), empty, SCALE)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(audio.grad, torch.zeros_like(audio))


def test_a_candidate_of_several_ranks_is_gathered_once():
    gathered = Candidates(torch.arange(3.0)[:, None], torch.tensor([5, 2, 5])).gather()
    assert gathered.ids_N.tolist() == [5, 2]
    assert gathered.vectors_ND.tolist() == [[0.0], [1.0]]


# Sixteen clips of a global batch: repeated terms, several windows, uneven numbers of candidates on the two ranks.
NUM_CLIPS, DIM = 16, 8
TERMS_OF_CLIP = [[clip % 5, -1] if clip % 3 else [clip % 5, 7] for clip in range(NUM_CLIPS)]
NEUTRAL_OF_CLIP = [[(clip + 1) % 5] for clip in range(NUM_CLIPS)]


def rank_loss(audio_tower, term_tower, clips):
    """The loss of some clips of the global batch, with towers that have parameters to compare."""
    data = unit_rows(NUM_CLIPS, 3, 6)[clips]
    said = {term for clip in clips for term in TERMS_OF_CLIP[clip] if term >= 0}
    ids = sorted(said, key=lambda term: (term * 7) % 11)
    vectors = normalize(audio_tower(data), dim=-1)
    queries = make_queries(vectors, [TERMS_OF_CLIP[clip] for clip in clips], [NEUTRAL_OF_CLIP[clip] for clip in clips])
    terms = normalize(term_tower(unit_rows(8, 6, seed=3)[ids]), dim=-1)
    return contrastive_loss(queries, Candidates(terms, torch.tensor(ids)).gather(), SCALE)


def make_towers():
    torch.manual_seed(0)
    return torch.nn.ModuleList([torch.nn.Linear(6, DIM), torch.nn.Linear(6, DIM)]).double()


def train_rank(process, init_file, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{init_file}", rank=process, world_size=2)
    assert torch.distributed.get_world_size() == 2
    towers = make_towers()
    clips = list(range(NUM_CLIPS))[process * 8 : process * 8 + 8]
    loss = rank_loss(*towers, clips)
    loss.backward()
    gradients = [parameter.grad for parameter in towers.parameters()]
    for gradient in gradients:
        torch.distributed.all_reduce(gradient)
        gradient /= 2
    uneven = gather_rows(torch.full((process + 1, 2), process))
    results[process] = (loss.item(), [gradient.tolist() for gradient in gradients], uneven.tolist())
    torch.distributed.destroy_process_group()


def test_two_ranks_equal_one(tmp_path):
    towers = make_towers()
    expected = rank_loss(*towers, list(range(NUM_CLIPS)))
    expected.backward()
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(train_rank, (str(tmp_path / "init"), results), nprocs=2)
        (loss_0, gradients_0, uneven), (loss_1, gradients_1, _) = results[0], results[1]
    assert (loss_0 + loss_1) / 2 == pytest.approx(expected.item(), abs=1e-6)
    assert gradients_0 == gradients_1
    for parameter, gradient in zip(towers.parameters(), gradients_0, strict=True):
        torch.testing.assert_close(torch.tensor(gradient, dtype=torch.float64), parameter.grad, atol=1e-5, rtol=0)
    assert uneven == [[0, 0], [1, 1], [1, 1]]
