from __future__ import annotations

import pytest

from benchmarks.faults.flips import make_pack, problems_of, try_flip
from benchmarks.faults.isolation import CRASH, DONE, FOREIGN_ERROR, HANG, REFUSED, Outcome, isolated
from benchmarks.faults.report import report
from tests.processes.trial import end_by


@pytest.mark.parametrize("how", [CRASH, HANG, REFUSED, FOREIGN_ERROR, DONE])
def test_a_trial_that_crashes_or_hangs_is_told_apart_from_an_error(how):
    outcome = isolated(end_by, how, time_limit_s=1.0)
    assert outcome.status == how


def test_a_flipped_bit_is_found_and_its_clip_refused(tmp_path):
    pack, digests = make_pack(tmp_path)
    shard = sorted(pack.glob("*.dat"))[0]
    outcome = isolated(try_flip, pack, digests, shard.name, 8 * 5000)
    assert outcome.value["by_row"]["refused"] == 1
    assert problems_of(outcome) == []
    assert problems_of(Outcome(DONE, {**outcome.value, "found": False})) == ["missed by verify"]


def test_the_report_counts_failures_and_names_what_failed():
    fuzz = {"by_kind": {"wav": {"refused": 2, "crash": 1}}, "failures": [{}]}
    environment = {"seed": 0, "full disk": {"passed": False, "said": "no error"}}
    text = report({"fuzz": fuzz, "environment": environment})
    assert "Damaged inputs: 1 failure\n" in text
    assert "| wav | 3 | 0 | 2 | 0 | 1 | 0 | 0 |" in text
    assert "| full disk | **no** | no error |" in text
