"""What speaks for a candidate: the right term fits best, a part explains less, a twin has one sound amiss."""

import numpy as np
import pytest
import torch

from qwen_term_retrieval.verification.evidence import FEATURES, Candidates, gather_evidence
from qwen_term_retrieval.verification.pronunciations import BLANK, PronunciationBank

NUM_CLASSES = 8


def emissions(*sounds, frames_each=3, sure=0.95):
    """A head that hears these sounds, one after another, with a blank after each."""
    said = [each for sound in sounds for each in (*[sound] * frames_each, BLANK)]
    probs = torch.full((len(said), NUM_CLASSES), (1 - sure) / (NUM_CLASSES - 1))
    probs[range(len(said)), said] = sure
    return probs.log()[None]


def evidence_for(log_probs, pronunciations, places=None):
    bank = PronunciationBank.of(pronunciations, NUM_CLASSES)
    count, frames = len(pronunciations), log_probs.shape[1]
    starts, ends = (np.zeros(count, np.int64), np.full(count, frames)) if places is None else places
    candidates = Candidates(np.zeros(count, np.int64), np.arange(count), np.full(count, 0.5, np.float32), starts, ends)
    return gather_evidence(log_probs, np.array([frames]), bank, candidates, frame_rate=50.0)


def column(evidence, name):
    return evidence.features_PF[:, FEATURES.index(name)]


def test_what_was_said_fits_and_its_place_is_found():
    found = evidence_for(emissions(1, 2, 3, 4), [[[2, 3]], [[2, 5]]])
    assert column(found, "fit")[0] == pytest.approx(0, abs=1e-4)
    assert column(found, "fit")[1] < -4
    # The last sound may end with its first frame: those after it are free.
    assert found.starts_P[0] == 4
    assert 9 <= found.ends_P[0] <= 11


def test_a_twin_costs_the_sound_that_tells_it_apart():
    found = evidence_for(emissions(1, 2, 3), [[[1, 2, 3]], [[1, 2, 4]]])
    assert column(found, "fit")[0] == pytest.approx(0, abs=1e-4)
    assert column(found, "fit")[1] < -2


def test_a_part_leaves_more_unexplained_than_the_whole():
    found = evidence_for(emissions(1, 2, 3, 4), [[[1, 2, 3, 4]], [[2, 3]]])
    assert column(found, "few_beside").tolist() == [0, 2]


def test_what_is_left_unexplained_does_not_depend_on_where_the_term_was_proposed():
    log_probs = emissions(1, 2, 3, 4)
    narrow, wide = (
        evidence_for(log_probs, [[[2, 3]]], (np.array([3]), np.array([end]))) for end in (12, log_probs.shape[1])
    )
    assert column(narrow, "few_beside").tolist() == column(wide, "few_beside").tolist() == [2]


def test_a_term_in_a_sentence_is_no_worse_for_many_neighbours_than_for_a_few():
    found = evidence_for(emissions(1, 2, 3, 1, 2, 3, 4, 5, 6), [[[4, 5]]])
    assert column(found, "few_beside").tolist() == [0]
    assert column(found, "many_beside").tolist() == [1]


def test_a_term_far_too_long_is_worse_with_each_sound():
    """No floor that all long terms share: the longest would else fit best by the sound."""
    found = evidence_for(emissions(1, 2, 3), [[[1, 2, 3]], [[4, 5] * 20], [[4, 5] * 40]])
    assert column(found, "fit")[2] < column(found, "fit")[1] < -500 < column(found, "fit")[0]


def test_the_best_of_several_pronunciations_counts():
    found = evidence_for(emissions(1, 2), [[[5, 6], [1, 2]]])
    assert column(found, "fit")[0] == pytest.approx(0, abs=1e-4)


def test_a_candidate_is_looked_for_only_where_it_was_proposed():
    log_probs = emissions(1, 2, 5, 1, 2)
    late = (np.array([10]), np.array([20]))
    found = evidence_for(log_probs, [[[1, 2]]], late)
    assert found.starts_P[0] >= 10
    assert column(found, "fit")[0] == pytest.approx(0, abs=1e-4)


def test_a_term_without_a_pronunciation_or_without_room_is_worst_and_finite():
    bank = PronunciationBank.of_owned([[], [np.array([1, 2, 3, 4], np.int16)]], NUM_CLASSES)
    candidates = Candidates(
        np.zeros(2, np.int64), np.arange(2), np.zeros(2, np.float32), np.zeros(2, np.int64), np.full(2, 2)
    )
    found = gather_evidence(emissions(1, 2), np.array([8]), bank, candidates, frame_rate=50.0)
    assert np.isfinite(found.features_PF).all()
    assert column(found, "fit").tolist() == [-80, -15 * 4]


def test_no_candidate_gives_no_evidence():
    bank = PronunciationBank.of([[[1]]], NUM_CLASSES)
    none = np.zeros(0, np.int64)
    found = gather_evidence(
        emissions(1), np.array([4]), bank, Candidates(none, none, none.astype(np.float32), none, none), frame_rate=50.0
    )
    assert found.features_PF.shape == (0, len(FEATURES))
