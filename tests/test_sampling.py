"""The order of clips: a function of (seed, epoch, position) and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_term_retrieval.training.sampling import LengthBucketedSampler, Visit

LENGTHS = np.random.default_rng(0).uniform(0.3, 6.0, size=203)


def test_every_clip_comes_once_an_epoch():
    sampler = LengthBucketedSampler(LENGTHS, 16, seed=1)
    assert sorted(visit.clip for visit in sampler) == list(range(203))


def test_the_order_depends_on_seed_and_epoch_alone():
    first, second = LengthBucketedSampler(LENGTHS, 16, seed=1), LengthBucketedSampler(LENGTHS, 16, seed=1)
    list(first)
    assert list(first) == list(second)
    second.set_epoch(1)
    assert list(first) != list(second)
    first.set_epoch(1)
    assert list(first) == list(second)
    assert list(first) != list(LengthBucketedSampler(LENGTHS, 16, seed=2))


def test_a_batch_holds_clips_of_about_one_length():
    order = LengthBucketedSampler(LENGTHS, 16, seed=1, pool_batches=12).order()
    batches = LENGTHS[order[:192]].reshape(12, 16)
    assert np.ptp(batches, axis=1).mean() < 0.25 * np.ptp(LENGTHS)


def test_batches_do_not_come_sorted():
    order = LengthBucketedSampler(LENGTHS, 16, seed=1, pool_batches=12).order()
    means = LENGTHS[order[:192]].reshape(12, 16).mean(1)
    assert (np.diff(means) < 0).any()


def test_fewer_clips_than_a_batch_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="Lower --per_device_train_batch_size"):
        LengthBucketedSampler(LENGTHS[:5], 16, seed=0)


@given(st.integers(1, 64), st.integers(0, 5), st.integers(1, 8))
def test_any_sizes_give_a_permutation(batch_size, epoch, pool_batches):
    sampler = LengthBucketedSampler(LENGTHS[:64], batch_size, seed=3, pool_batches=pool_batches)
    sampler.set_epoch(epoch)
    visits = list(sampler)
    assert sorted(visit.clip for visit in visits) == list(range(64))
    assert all(isinstance(visit, Visit) and visit.draw >= 0 for visit in visits)
