"""Probabilities mean what they say, hold from small banks to large, and do not pass from a missing term to its twin."""

import json

import numpy as np
import pytest

from qwen_term_retrieval.errors import VerifierError
from qwen_term_retrieval.verification.evidence import FEATURES, Evidence
from qwen_term_retrieval.verification.fitting import JudgedCandidates, fit, probabilities_of
from qwen_term_retrieval.verification.verifier import BELIEFS, OperatingPoint, Verifier, margins

PLAIN = Verifier({name: float(name == "fit") for name in FEATURES}, dict.fromkeys(BELIEFS, 0.0) | {"strength": 1.0})


def searches(seed, banks=(100, 1_000, 10_000), num_clips=300, missing=0.0, per_clip=20):
    """Clips whose right term fits about -3 +- 2, among wrong ones of which a larger bank has better-fitting ones."""
    found = []
    for num_terms in banks:
        rng = np.random.default_rng((seed, num_terms))
        features, clips, right = [], [], []
        for clip in range(num_clips):
            fits = rng.normal(-20 + 2.5 * np.log10(num_terms), 3, per_clip)
            has_right = rng.random() >= missing
            fits[0] = rng.normal(-3, 2) if has_right else fits[0]
            rows = np.zeros((per_clip, len(FEATURES)), np.float32)
            rows[:, FEATURES.index("fit")] = np.minimum(fits, 0)
            rows[:, FEATURES.index("cosine")] = rng.normal(0, 1, per_clip)  # says nothing
            features.append(rows)
            clips += [clip] * per_clip
            right += [has_right, *[False] * (per_clip - 1)]
        count = len(clips)
        evidence = Evidence(np.concatenate(features), np.zeros(count, np.int64), np.full(count, 10))
        found.append(
            JudgedCandidates(
                evidence,
                np.array(clips),
                np.array(right),
                np.zeros(count, np.bool_),
                [""] * count,
                num_clips,
                num_terms,
                np.bincount(clips, right, num_clips).astype(np.int64),
                num_clips * 2.0,
            )
        )
    return found


def nested_searches(num_clips=200):
    """Clips that say a whole of six sounds, of which a part of three fits a little better and leaves three unexplained.

    The part that is said alone, of other clips, fits as well, and leaves nothing.
    """
    rng = np.random.default_rng(0)
    rows, right, parts = [], [], []
    for clip in range(num_clips):
        whole_said = clip % 2 == 0
        fits = -rng.exponential(1, 2) - (np.array([1, 0]) if whole_said else np.array([12, 0]))
        for fit_, sounds, beside in zip(fits, (6, 3), (0, 3 if whole_said else 0), strict=True):
            rows.append(
                [
                    {"cosine": 0.7, "fit": fit_, "sounds": sounds, "few_beside": beside, "many_beside": 0}[f]
                    for f in FEATURES
                ]
            )
        right += [whole_said, not whole_said]
        parts += [False, whole_said]
    count = 2 * num_clips
    evidence = Evidence(np.array(rows, np.float32), np.zeros(count, np.int64), np.full(count, 10))
    clips = np.arange(count) // 2
    return JudgedCandidates(
        evidence,
        clips,
        np.array(right),
        np.array(parts),
        ["whole part", "part"] * num_clips,
        num_clips,
        100,
        np.ones(num_clips, np.int64),
        num_clips * 2.0,
    )


def said_and_right(verifier, search):
    evidence = search.evidence
    strengths = verifier.strengths_of(evidence.features_PF)
    margin = margins(strengths, search.clips_P, evidence.starts_P, evidence.ends_P, search.words_P)
    return verifier.probabilities(strengths, margin, search.num_terms), search.right_P


@pytest.fixture(scope="module")
def fitted():
    return fit(searches(seed=0))


def test_a_feature_that_says_nothing_weighs_little(fitted):
    assert fitted.strengths["fit"] > 10 * abs(fitted.strengths["cosine"])


def test_probabilities_are_right_as_often_as_they_say(fitted):
    """On other clips, half of which do not hold their term, as in the fit."""
    told = [said_and_right(fitted, search) for search in searches(seed=1, missing=0.5)]
    probability, right = (np.concatenate(parts) for parts in zip(*told, strict=True))
    for low, high in ((0.2, 0.5), (0.5, 0.8), (0.8, 1.0)):
        inside = (probability >= low) & (probability < high)
        assert abs(probability[inside].mean() - right[inside].mean()) < 0.1


def test_what_is_believed_is_right_as_often_as_it_says_in_small_banks_and_in_large(fitted):
    for search in searches(seed=2, num_clips=1_000, missing=0.5):
        probability, right = said_and_right(fitted, search)
        believed = probability >= 0.5
        assert abs(probability[believed].mean() - right[believed].mean()) < 0.15


def test_what_the_threshold_promised_is_kept_on_other_clips(fitted):
    threshold = fitted.threshold_for(precision=0.95)
    told = [said_and_right(fitted, search) for search in searches(seed=3)]
    right = np.concatenate([right[probability >= threshold] for probability, right in told])
    assert right.mean() > 0.92


def test_a_part_of_what_was_said_ranks_below_it_and_is_no_false_alarm():
    search = nested_searches()
    verifier = fit([search])
    strengths = verifier.strengths_of(search.evidence.features_PF).reshape(-1, 2)
    right = search.right_P.reshape(-1, 2)
    assert (strengths.argmax(axis=1) == right.argmax(axis=1)).mean() > 0.99
    assert len(probabilities_of(verifier, search)[0]) == len(search.right_P) - search.parts_P.sum()


def test_a_hundred_times_as_many_clips_change_no_weight_much(fitted):
    """What is held back is the weight, not a share of every clip."""
    few, many = fit(searches(seed=5, num_clips=50)), fit(searches(seed=5, num_clips=1_000))
    assert few.strengths["fit"] == pytest.approx(many.strengths["fit"], rel=0.5)


def test_the_terms_of_a_clip_count_together_as_much_as_the_one_of_another():
    evidence = Evidence(np.zeros((6, len(FEATURES)), np.float32), np.zeros(6, np.int64), np.full(6, 10))
    right, clips = np.array([True, True, True, False, True, False]), np.array([0, 0, 0, 0, 1, 1])
    # One of the four terms of the first clip was not proposed.
    search = JudgedCandidates(evidence, clips, right, ~right & False, [""] * 6, 2, 100, np.array([4, 1]), 4.0)
    assert search.shares.tolist() == [0.25, 0.25, 0.25, 1.0, 1.0, 1.0]
    # All have the same probability: below it every term that was proposed counts, .75 of the first clip and the second.
    assert fit([search]).points[0].recall == pytest.approx((0.75 + 1) / 2)


def test_a_promise_that_was_never_kept_is_refused_with_what_came_nearest():
    points = (OperatingPoint(0.1, 0.6, 0.9, 300.0), OperatingPoint(0.9, 0.8, 0.5, 40.0))
    verifier = Verifier(PLAIN.strengths, PLAIN.beliefs, points)
    assert verifier.threshold_for(precision=0.7) == 0.9
    assert verifier.threshold_for(false_alarms_per_hour=500) == 0.1
    with pytest.raises(VerifierError, match=r"precision 0.99.*0.900 came nearest: precision 0.800, 40.0 false alarms"):
        verifier.threshold_for(precision=0.99)


def test_rivals_are_those_that_claim_the_same_place_in_the_same_clip():
    strengths = np.array([3.0, 1.0, 2.0, 9.0])
    clips, starts, ends = np.array([0, 0, 0, 1]), np.array([0, 2, 50, 0]), np.array([10, 12, 60, 10])
    assert margins(strengths, clips, starts, ends, list("abcd")).tolist() == [2.0, -2.0, 8.0, 8.0]


def test_a_homophone_leaves_no_margin():
    tied = margins(np.array([3.0, 3.0]), np.zeros(2, np.int64), np.zeros(2, np.int64), np.full(2, 9), ["four", "for"])
    assert tied.tolist() == [0.0, 0.0]


def margins_in_one_place(**strengths):
    """Of terms, "_" for a space, that claim the same place of one clip."""
    count = len(strengths)
    words = [name.replace("_", " ") for name in strengths]
    found = margins(np.array([*strengths.values()]), np.zeros(count, np.int64), np.zeros(count, np.int64),
                    np.full(count, 9), words)  # fmt: skip
    return dict(zip(strengths, found.tolist(), strict=True))


def test_a_whole_is_no_rival_of_its_part_which_is_as_sure_at_most():
    assert margins_in_one_place(digit_pin=9.0, pin=4.0) == {"digit_pin": 5.0, "pin": 5.0}
    # Of a chain the strongest whole counts; a rival of the whole is one of its parts.
    told = margins_in_one_place(two_digit_pin=9.0, digit_pin=7.0, pin=4.0, digit_bin=8.0)
    assert told == {"two_digit_pin": 1.0, "digit_pin": -1.0, "pin": -4.0, "digit_bin": -1.0}


def test_a_stronger_part_is_a_rival_and_so_is_a_word_that_only_begins_alike():
    assert margins_in_one_place(call_forwarding=2.0, call=6.0) == {"call_forwarding": -4.0, "call": 4.0}
    assert margins_in_one_place(sixteenth=6.0, sixteen=5.0) == {"sixteenth": 1.0, "sixteen": -1.0}


def test_a_verifier_is_kept_as_json(fitted):
    again = Verifier.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted


def test_a_verifier_of_other_features_is_refused_with_the_remedy():
    with pytest.raises(VerifierError, match="qtr calibrate"):
        Verifier({"cosine": 1.0}, dict.fromkeys(BELIEFS, 0.0))


def test_clips_that_cannot_teach_are_refused():
    (search,) = searches(seed=0, banks=(100,), num_clips=5)
    nothing_right = search.without_right()
    with pytest.raises(VerifierError, match="own term among the candidates"):
        fit([nothing_right])
    right = search.right_P
    only_right = JudgedCandidates(
        search.evidence.select(right),
        search.clips_P[right],
        right[right],
        ~right[right],
        [""] * 5,
        5,
        100,
        np.ones(5, np.int64),
        10.0,
    )
    with pytest.raises(VerifierError, match="no wrong term is a candidate"):
        fit([only_right])
