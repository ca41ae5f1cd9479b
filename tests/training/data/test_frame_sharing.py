"""Frames of a frozen tower are computed by all ranks: each an equal share, once, to the same bytes as by one."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_term_retrieval.training.data.frame_sharing import equal_shares
from tests.processes import frames as frames_process
from tests.processes.frames import BATCH_SIZE, CASES, clips
from tests.processes.launching import ENVIRONMENT, ROOT


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 8))
def test_shares_hold_everything_once_and_differ_by_no_more_than_one_of_the_largest(costs, num_shares):
    shares = equal_shares(costs, num_shares)
    assert len(shares) == num_shares
    assert sorted(position for share in shares for position in share) == list(range(len(costs)))
    sums = [sum(costs[position] for position in share) for share in shares]
    assert max(sums) - min(sums) <= max(costs, default=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("frames")


@pytest.fixture(scope="module")
def two_ranks(folder):
    """What two processes computed together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, frames_process.__file__, str(folder)],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same in this process."""
    return {
        name: frames_process.frames(tmp_path_factory.mktemp(name), **CASES[name]) for name in ("empty", "half-full")
    }


def computed(two_ranks, case):
    return [found[case]["computed"] for found in two_ranks]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["empty", "half-full"])
def test_two_ranks_compute_each_clip_once_and_read_the_bytes_that_one_computes(two_ranks, alone, case):
    shares = computed(two_ranks, case)
    assert all(shares)
    assert sorted(shares[0] + shares[1]) == sorted(alone[case]["computed"])
    for found in two_ranks:
        assert found[case]["frames"] == alone[case]["frames"]
        assert found[case]["num_frames"] == alone[case]["num_frames"]


@pytest.mark.slow
def test_shares_are_of_audio_not_of_clips(two_ranks):
    """One batch holds the clip of four seconds, which is nearly as long as all the others together."""
    with_the_longest, other = sorted(computed(two_ranks, "empty"), key=len)
    assert max(with_the_longest) == 4 * 16_000
    assert len(with_the_longest) == BATCH_SIZE
    assert len(other) == len(clips()) - BATCH_SIZE


@pytest.mark.slow
def test_ranks_with_a_disk_each_compute_all_of_it_for_themselves(two_ranks, alone):
    for found in two_ranks:
        assert sorted(found["own-disks"]["computed"]) == sorted(alone["empty"]["computed"])
        assert found["own-disks"]["frames"] == alone["empty"]["frames"]


@pytest.mark.slow
def test_a_rank_that_fails_ends_all_of_them_with_its_message_and_what_was_computed_is_kept(two_ranks, folder):
    told, failed = (found["broken-tower"]["error"] for found in two_ranks)
    assert failed == "RuntimeError: out of memory"
    assert told == "OtherRankError: rank 1 failed: RuntimeError: out of memory"
    kept = sum(map(len, computed(two_ranks, "broken-tower")))
    assert BATCH_SIZE < kept < len(clips())
    again = frames_process.frames(folder / "broken-tower")
    assert len(again["computed"]) == len(clips()) - kept


@pytest.mark.slow
def test_a_clip_that_one_rank_cannot_read_ends_all_of_them_before_anything_is_computed(two_ranks):
    told, failed = (found["broken-clip"]["error"] for found in two_ranks)
    assert failed == "ValueError: POD/7: holds 0 samples"
    assert told == f"OtherRankError: rank 1 failed: {failed}"
    assert computed(two_ranks, "broken-clip") == [[], []]


@pytest.mark.slow
def test_a_run_on_two_ranks_has_the_frames_of_its_frozen_tower_computed_by_both(two_ranks):
    shares = [found["run"]["computed"] for found in two_ranks]
    assert all(shares)
    assert sum(shares) == two_ranks[0]["run"]["clips"]


@pytest.mark.slow
def test_an_output_folder_that_not_all_machines_see_is_refused_on_all(two_ranks):
    for found in two_ranks:
        assert "rank 0 goes on from checkpoint-2, rank 1 from None. All machines must see one" in found["output_dir"]
