"""Epochs one after the other: what comes, when it is built, and that no process stays."""

import multiprocessing
import os
import time

import pytest
import torch
from accelerate.data_loader import skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from qwen_term_retrieval.runs.loader import EpochLoader
from qwen_term_retrieval.runs.sampling import LengthBucketedSampler
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from tests.processes.trainer import make_trainer

NUM_CLIPS, BATCH_SIZE = 23, 4
NUM_BATCHES = NUM_CLIPS // BATCH_SIZE


class Visited(Dataset):
    """Gives a visit back, with the process that read it; notes in a file what was read."""

    def __init__(self, log, unreadable=None):
        self.log = log
        self.unreadable = unreadable

    def __getitem__(self, visit):
        if visit.clip == self.unreadable:
            raise ValueError(f"row {visit.clip} cannot be read")
        with open(self.log, "a") as file:
            file.write(f"{visit.step}\n")
        return visit, os.getpid()


def as_it_is(rows):
    return rows


@pytest.fixture
def make_loader(tmp_path):
    loaders = []

    def make(num_workers=2, persistent_workers=True, unreadable=None, **settings):
        loader = EpochLoader(
            Visited(tmp_path / "log", unreadable),
            make_sampler(),
            collate_fn=as_it_is,
            num_workers=num_workers,
            persistent_workers=persistent_workers,
            **settings,
        )
        loaders.append(loader)
        return loader

    yield make
    for loader in loaders:
        loader.close()


def make_sampler():
    return LengthBucketedSampler(range(NUM_CLIPS), BATCH_SIZE, seed=1)


def expected(epoch):
    sampler = make_sampler()
    sampler.set_epoch(epoch)
    return list(sampler)


def visits(batches):
    return [[visit for visit, _ in batch] for batch in batches]


def read(loader, epoch, num_batches=NUM_BATCHES):
    """As the Trainer does: it never asks for more batches than an epoch has."""
    loader.set_epoch(epoch)
    batches = iter(loader)
    return [next(batches) for _ in range(num_batches)]


def processes(batches):
    return {process for batch in batches for _, process in batch}


@pytest.mark.parametrize(("start_method", "num_workers"), [("fork", 2), ("spawn", 1)])
def test_epochs_come_in_the_sampler_s_order_from_workers_that_stay(make_loader, start_method, num_workers):
    loader = make_loader(num_workers, multiprocessing_context=start_method)
    assert len(loader) == NUM_BATCHES
    epochs = [read(loader, epoch) for epoch in range(3)]
    assert [visits(batches) for batches in epochs] == [expected(epoch) for epoch in range(3)]
    assert len(set.union(*map(processes, epochs))) == num_workers


@pytest.mark.parametrize("workers", [{"num_workers": 0, "persistent_workers": False}, {"persistent_workers": False}])
def test_without_persistent_workers_epochs_come_in_the_same_order(make_loader, workers):
    loader = make_loader(**workers)
    for epoch in (0, 1, 1, 4):
        loader.set_epoch(epoch)
        assert visits(loader) == expected(epoch)
    assert not multiprocessing.active_children()


def test_the_next_epoch_is_begun_before_it_is_asked_for_and_not_too_far(make_loader, tmp_path):
    loader = make_loader(num_workers=1, prefetch_factor=3)
    read(loader, 0)

    def num_built():
        return len((tmp_path / "log").read_text().splitlines()) / BATCH_SIZE

    ended = time.monotonic() + 20
    while num_built() < NUM_BATCHES + 3 and time.monotonic() < ended:
        time.sleep(0.01)
    time.sleep(0.2)
    assert num_built() == NUM_BATCHES + 3


@pytest.mark.parametrize(
    "ways", [((0, 2), (1, 5)), ((0, 2), (0, 5)), ((0, 5), (0, 5)), ((0, 5), (3, 5)), ((2, 1), (3, 5), (4, 5))]
)
def test_an_epoch_that_does_not_follow_starts_anew(make_loader, ways):
    loader = make_loader()
    for epoch, num_batches in ways:
        assert visits(read(loader, epoch, num_batches)) == expected(epoch)[:num_batches]
    assert len(multiprocessing.active_children()) == 2


def test_a_run_resumed_within_an_epoch_reads_the_rest_of_it_and_goes_on(make_loader):
    loader = make_loader()
    rest = skip_first_batches(loader, 3)
    rest.batch_sampler.batch_sampler.set_epoch(2)
    assert visits(rest) == expected(2)[3:]
    assert [visits(read(loader, epoch)) for epoch in (3, 4)] == [expected(3), expected(4)]


def test_a_loader_draws_nothing_of_what_dropout_draws(make_loader):
    before = torch.get_rng_state()
    for loader in (make_loader(), make_loader(num_workers=0, persistent_workers=False)):
        read(loader, 0)
        read(loader, 1)
        read(loader, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_error_in_a_worker_names_the_row_and_its_epoch_can_be_read_again(make_loader):
    clips = [[visit.clip for visit in batch] for batch in expected(0)]
    loader = make_loader(unreadable=clips[0][2])
    for _ in range(2):
        with pytest.raises(ValueError, match=f"row {clips[0][2]} cannot be read"):
            read(loader, 0)
    loader.close()
    assert not multiprocessing.active_children()


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
def test_no_batch_is_built_more_steps_ahead_than_hard_negatives_allow(num_batches, accumulated, workers, prefetch):
    args = TermRetrievalArguments(
        output_dir="unused", use_cpu=True, report_to="none", gradient_accumulation_steps=accumulated,
        dataloader_num_workers=workers, dataloader_prefetch_factor=prefetch,
    )  # fmt: skip
    sampler = LengthBucketedSampler(range(num_batches), 1, seed=0, batches_per_step=accumulated)
    steps = []
    for epoch in range(5 + workers * prefetch):
        sampler.set_epoch(epoch)
        steps += [visit.step for batch in sampler for visit in batch]
    # A batch is sent to a worker when the one so many before it has come; see the test above.
    ahead = [later - step for step, later in zip(steps, steps[workers * prefetch :], strict=False)]
    assert max(ahead) <= args.steps_built_ahead
    if accumulated == 1 or num_batches == 1:
        assert max(ahead) == args.steps_built_ahead


@pytest.mark.slow
def test_a_run_with_a_worker_takes_the_steps_of_one_without_also_when_resumed_and_leaves_no_process(tmp_path):
    settings = {"max_steps": 8, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 4}
    alone = make_trainer(tmp_path / "alone", 32, **settings)
    alone.train()
    settings["dataloader_num_workers"] = 1
    trainer = make_trainer(tmp_path / "worker", 32, **settings)
    trainer.train()
    assert not multiprocessing.active_children()
    resumed = make_trainer(tmp_path / "resumed", 32, **settings)
    # 96 clips: three steps an epoch, so that one of the second has been taken.
    resumed.train(resume_from_checkpoint=str(tmp_path / "worker" / "checkpoint-4"))
    for other in (trainer, resumed):
        pairs = zip(alone.model.parameters(), other.model.parameters(), strict=True)
        assert all(torch.equal(one, same) for one, same in pairs)


@pytest.mark.slow
def test_a_run_that_an_error_ends_leaves_no_process(tmp_path):
    trainer = make_trainer(
        tmp_path, 32, dataloader_num_workers=1, enable_hard_neg=True, hard_negatives_of=mined_for_two_steps
    )
    with pytest.raises(FileNotFoundError, match="no mining for step 2") as raised:
        trainer.train()
    assert trainer.state.global_step == 2
    # The traceback, which refers to what was at work, is still held.
    assert raised.value.__traceback__ is not None
    assert not multiprocessing.active_children()


def mined_for_two_steps(clip, step):
    if step == 2:
        raise FileNotFoundError(f"no mining for step {step}")
    return [0]
