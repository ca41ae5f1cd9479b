"""The order of clips: a function of (seed, epoch, position) and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_term_retrieval.runs.sampling import DurationBatchSampler, LengthBucketedSampler, Visit

LENGTHS = np.random.default_rng(0).uniform(0.3, 6.0, size=203)
LENGTH_CLIPS = [129, 64, 18, 165, 35, 200, 41, 54]
LENGTH_LAST = Visit(clip=173, draw=803624197903368969, step=11)
DURATION_CLIPS = [183, 61, 130, 39, 132, 140, 4, 103]
DURATION_LAST = Visit(clip=13, draw=2681064444767050468, step=19)


def test_every_clip_comes_at_most_once_an_epoch():
    sampler = LengthBucketedSampler(LENGTHS, 16, seed=1)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 12
    assert {len(batch) for batch in batches} == {16}
    assert len({visit.clip for batch in batches for visit in batch}) == 192
    assert sorted(sampler.order()) == list(range(203))


@pytest.mark.parametrize(
    ("sampler", "clips", "last"),
    [
        (LengthBucketedSampler(LENGTHS, 16, seed=1, batches_per_step=5), LENGTH_CLIPS, LENGTH_LAST),
        (DurationBatchSampler(LENGTHS, 60.0, seed=1, batches_per_step=5), DURATION_CLIPS, DURATION_LAST),
    ],
)
def test_the_order_of_a_seed_is_the_same_in_every_release(sampler, clips, last):
    """Or a run that was stopped would not go on as it began."""
    sampler.set_epoch(3)
    batches = list(sampler)
    assert [visit.clip for visit in batches[0][:8]] == clips
    assert batches[-1][-1] == last


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
    with pytest.raises(ValueError, match="3 processes cannot share batches of 16 clips"):
        LengthBucketedSampler(LENGTHS, 16, seed=0, num_ranks=3)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        LengthBucketedSampler(LENGTHS, 16, seed=0, rank=2, num_ranks=2)


@given(st.integers(1, 64), st.integers(0, 5), st.integers(1, 8))
def test_any_sizes_give_a_permutation(batch_size, epoch, pool_batches):
    sampler = LengthBucketedSampler(LENGTHS[:64], batch_size, seed=3, pool_batches=pool_batches)
    sampler.set_epoch(epoch)
    assert sorted(sampler.order()) == list(range(64))
    visits = [visit for batch in sampler for visit in batch]
    assert [visit.clip for visit in visits] == sampler.order()[: len(sampler) * batch_size].tolist()
    assert all(visit.draw >= 0 for visit in visits)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_every_rank_gets_an_equal_share_of_a_batch(num_ranks):
    whole = list(LengthBucketedSampler(LENGTHS, 16, seed=1))
    shares = [
        list(LengthBucketedSampler(LENGTHS, 16, seed=1, rank=rank, num_ranks=num_ranks)) for rank in range(num_ranks)
    ]
    assert {len(batch) for share in shares for batch in share} == {16 // num_ranks}
    assert [[visit for part in parts for visit in part] for parts in zip(*shares, strict=True)] == whole


def test_draws_depend_on_the_position_and_not_on_the_batches():
    def draws(batch_size):
        return [visit.draw for batch in LengthBucketedSampler(LENGTHS, batch_size, seed=1) for visit in batch]

    assert draws(7)[:200] == draws(100)
    assert len(set(draws(7))) == 203


@pytest.mark.parametrize(
    "sampler",
    [
        LengthBucketedSampler(LENGTHS, 16, seed=1, batches_per_step=5),
        DurationBatchSampler(LENGTHS, 90.0, seed=1, batches_per_step=5),
    ],
)
def test_a_visit_knows_its_optimizer_step(sampler):
    def steps_of_epoch(epoch):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert all(len({visit.step for visit in batch}) == 1 for batch in batches)
        return [batch[0].step for batch in batches]

    first, second = steps_of_epoch(0), steps_of_epoch(1)
    steps = -(-len(first) // 5)
    assert first == [number // 5 for number in range(len(first))]
    assert second == [step + steps for step in first]


@given(
    st.lists(st.floats(0.1, 12.0), min_size=8, max_size=120),
    st.floats(100.0, 400.0),
    st.integers(0, 3),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 5),
)
def test_a_batch_stays_within_its_seconds_and_every_rank_gets_an_equal_share_of_it(
    durations, budget, epoch, num_ranks, bucket_batches
):
    def sampler(rank, num_ranks):
        sampler = DurationBatchSampler(
            durations, budget, 5, rank=rank, num_ranks=num_ranks, bucket_batches=bucket_batches
        )
        sampler.set_epoch(epoch)
        return sampler

    whole = list(sampler(0, 1))
    assert len(whole) == len(sampler(0, 1))
    for batch in whole:
        assert len(batch) % 8 == 0
        assert len(batch) * max(durations[visit.clip] for visit in batch) <= budget * (1 + 1e-9)
    clips = [visit.clip for batch in whole for visit in batch]
    assert len(set(clips)) == len(clips)
    shares = [list(sampler(rank, num_ranks)) for rank in range(num_ranks)]
    assert len({len(share) for share in shares}) == 1
    for number, batch in enumerate(whole):
        assert [visit for share in shares for visit in share[number]] == batch
        assert len({len(share[number]) for share in shares}) == 1


def test_every_epoch_has_as_many_batches_and_leaves_other_clips_out():
    sampler = DurationBatchSampler(LENGTHS, 60.0, seed=0, bucket_batches=3)
    left_out = []
    for epoch in range(8):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        left_out.append(set(range(203)) - {visit.clip for batch in batches for visit in batch})
    assert max(map(len, left_out)) < 8
    assert len(set.union(*left_out)) > 8
    assert not set.intersection(*left_out)


def test_short_clips_come_in_larger_batches():
    sampler = DurationBatchSampler(LENGTHS, 60.0, seed=0, bucket_batches=2)
    sizes = {len(batch) for batch in sampler}
    assert min(sizes) == 8
    assert max(sizes) == 32


def test_what_cannot_be_batched_by_duration_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"8 clips of 6\.0 s do not fit .* allow 48"):
        DurationBatchSampler([6.0] * 10, 40.0, seed=0)
    with pytest.raises(ValueError, match="3 processes cannot share"):
        DurationBatchSampler(LENGTHS, 60.0, seed=0, num_ranks=3)
    with pytest.raises(ValueError, match="fewer than the smallest batch"):
        DurationBatchSampler(LENGTHS[:7], 60.0, seed=0)
