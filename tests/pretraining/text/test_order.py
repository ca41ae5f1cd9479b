"""Which pairs come when."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.pretraining.text.batches import PairBatches
from qwen_term_retrieval.pretraining.text.order import MicroBatch, PairOrder, PairSampler


class Lengths:
    """Pairs of which only the lengths are known."""

    def __init__(self, count, seed=0):
        lot = np.random.default_rng(seed)
        self.prompt_N, self.response_N = lot.integers(2, 20, count), lot.geometric(0.03, count).clip(2, 192)

    def __len__(self):
        return len(self.prompt_N)

    def lengths(self, indices):
        return self.prompt_N[indices], self.response_N[indices]

    def batch(self, indices):
        return indices


def epoch_of(order, epoch=0):
    return np.stack([order.batch(MicroBatch(epoch, number)) for number in range(len(order))])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 700), st.integers(1, 24), st.integers(1, 9), st.booleans(), st.integers(0, 3))
def test_every_pair_that_is_kept_comes_once_an_epoch(count, batch_size, pool_batches, bucketed, epoch):
    if count < batch_size:
        with pytest.raises(ValueError, match=f"{count} training pairs are fewer than one global batch"):
            PairOrder(Lengths(count), batch_size, 0)
        return
    order = PairOrder(Lengths(count), batch_size, 0, bucketed=bucketed, pool_batches=pool_batches)
    seen = epoch_of(order, epoch).ravel()
    assert len(seen) == len(np.unique(seen)) == count // batch_size * batch_size
    assert 0 <= seen.min() <= seen.max() < count


def test_epochs_and_seeds_differ_and_the_same_come_out_the_same():
    pairs = Lengths(500)
    order = PairOrder(pairs, 12, 0, pool_batches=16)
    assert (epoch_of(order) == epoch_of(PairOrder(pairs, 12, 0, pool_batches=16))).all()
    assert (epoch_of(order, 1) != epoch_of(order)).any()
    assert (epoch_of(PairOrder(pairs, 12, 1, pool_batches=16)) != epoch_of(order)).any()


def test_a_batch_in_the_middle_of_an_epoch_is_known_by_its_number_alone():
    order = PairOrder(Lengths(500), 12, 0, pool_batches=4)
    whole = epoch_of(order, 2)
    for number in (17, 3, 40, 18):
        fresh = PairOrder(Lengths(500), 12, 0, pool_batches=4)
        assert (fresh.batch(MicroBatch(2, number)) == whole[number]).all()
    assert len(pickle.dumps(order)) < len(pickle.dumps(order.pairs)) + 1000  # no pool goes to a worker


@pytest.mark.parametrize("ranks", [2, 3, 6])
def test_ranks_share_each_batch_of_one(ranks):
    pairs = Lengths(500)
    order = PairOrder(pairs, 12, 0)
    shares = [PairBatches(pairs, order, lambda indices: indices, rank=rank, num_ranks=ranks) for rank in range(ranks)]
    for place in (place for (place,) in PairSampler(order)):
        parts = [share[place] for share in shares]
        assert {len(part) for part in parts} == {12 // ranks}
        assert (np.concatenate(parts) == order.batch(place)).all()
    with pytest.raises(ValueError, match="5 processes cannot share batches of 12 pairs equally"):
        PairBatches(pairs, order, lambda indices: indices, num_ranks=5)


def test_batches_of_like_length_are_hardly_padded_and_come_in_no_order_of_length():
    pairs = Lengths(32 * 256)

    def padding(order, ranks=3):
        real = places = 0
        for row in epoch_of(order).reshape(-1, order.global_batch_size // ranks):
            for lengths in pairs.lengths(row):
                real, places = real + lengths.sum(), places + lengths.max() * len(lengths)
        return 1 - real / places

    bucketed = PairOrder(pairs, 48, 0, pool_batches=256)
    assert padding(bucketed) < 0.1
    assert padding(PairOrder(pairs, 48, 0, bucketed=False)) > 0.4
    longest = pairs.response_N[epoch_of(bucketed)].max(axis=1)
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.3


def test_half_a_million_places_are_passed_over_without_building_a_batch():
    order = PairOrder(Lengths(600_000), 1, 0)
    order.pairs.lengths = None  # whoever asked for one would fail
    sampler = PairSampler(order)
    sampler.set_epoch(3)
    places = iter(sampler)
    for _ in range(500_000):
        next(places)
    assert next(places) == [MicroBatch(3, 500_000)]
