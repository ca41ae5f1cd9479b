"""Alignment is CTC by its definition, in every span, in any company; what cannot be said scores -inf, and never NaN."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.verification.alignment import Pairs, best_paths, forward_scores
from qwen_term_retrieval.verification.pronunciations import PronunciationBank
from tests.doubles.ctc_paths import all_free_paths, all_paths, best, log_sum

CLASSES = 3
SAID = st.lists(st.integers(1, CLASSES - 1), min_size=1, max_size=4)
SPANS = st.tuples(st.integers(0, 5), st.integers(0, 5)).map(sorted)


def emissions(num_clips, num_frames, num_classes=CLASSES, seed=0, sharpness=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_clips, num_frames, num_classes, generator=generator) * sharpness
    return logits.log_softmax(dim=-1)


def bank_of(*pronunciations, num_classes=CLASSES):
    return PronunciationBank.of([[said] for said in pronunciations], num_classes)


def one_clip(bank, num_frames):
    return Pairs.of_whole_clips(np.arange(len(bank)), np.zeros(len(bank), np.int64), np.array([num_frames]))


@given(
    pronunciations=st.lists(SAID, min_size=1, max_size=5),
    spans=st.lists(SPANS, min_size=5, max_size=5),
    seed=st.integers(0, 99),
    free=st.booleans(),
    impossible=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_scores_are_those_of_all_paths_written_down(pronunciations, spans, seed, free, impossible):
    log_probs_BTC = emissions(2, 5, seed=seed)
    if impossible:
        log_probs_BTC[0, 2, 0] = log_probs_BTC[1, 3] = -torch.inf
    bank, clips = bank_of(*pronunciations), np.arange(len(pronunciations)) % 2
    starts, ends = np.array(spans[: len(bank)]).T
    pairs = Pairs(np.arange(len(bank)), clips, starts, ends)
    forward_P = forward_scores(log_probs_BTC, bank, pairs, free=free)
    paths = best_paths(log_probs_BTC, bank, pairs, free=free)
    enumerate_paths = all_free_paths if free else all_paths
    for pair, said in enumerate(pronunciations):
        frames_TC = log_probs_BTC[clips[pair], starts[pair] : ends[pair]].numpy().astype(np.float64)
        scores = enumerate_paths(frames_TC, said)
        assert forward_P[pair].item() == pytest.approx(log_sum(scores), abs=1e-4)
        assert paths.scores_P[pair] == pytest.approx(best(scores), abs=1e-4)


def test_a_whole_span_scores_what_ctc_loss_says():
    log_probs_BTC = emissions(3, 40, num_classes=20)
    generator = np.random.default_rng(0)
    bank = bank_of(*(generator.integers(1, 20, length).tolist() for length in (1, 7, 3, 15, 20, 2)), num_classes=20)
    pairs = Pairs.of_whole_clips(np.arange(6), np.array([0, 1, 2, 0, 1, 2]), np.array([40, 31, 22]))
    losses = []
    for row, clip, end in zip(pairs.rows_P, pairs.clips_P, pairs.ends_P, strict=True):
        said = torch.from_numpy(bank[row].astype(np.int64))
        sizes = (int(end),), (len(said),)
        losses.append(torch.nn.functional.ctc_loss(log_probs_BTC[clip, :end], said, *sizes, reduction="sum"))
    torch.testing.assert_close(-forward_scores(log_probs_BTC, bank, pairs), torch.stack(losses), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("free", [False, True])
def test_company_changes_no_score(free):
    log_probs_BTC, bank = emissions(1, 30), bank_of([1], [1, 2, 1, 1, 2], [2, 2], [1, 2])
    starts = np.array([0, 3, 7, 11])
    pairs = Pairs(np.arange(4), np.zeros(4, np.int64), starts, np.array([30, 25, 28, 13]))
    together = forward_scores(log_probs_BTC, bank, pairs, free=free)
    paths = best_paths(log_probs_BTC, bank, pairs, free=free)
    for pair in range(4):
        itself = pairs.select(np.array([pair]))
        assert forward_scores(log_probs_BTC, bank, itself, free=free) == together[pair]
        alone = best_paths(log_probs_BTC, bank, itself, free=free)
        sounds = slice(paths.offsets_P1[pair], paths.offsets_P1[pair + 1])
        for name in ("sound_starts_S", "sound_ends_S", "sound_scores_S"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(paths, name)[sounds], err_msg=name)


def test_padding_after_a_span_is_not_heard():
    log_probs_BTC, bank = emissions(1, 12), bank_of([1, 2], [2, 1, 2])
    padded_BTC = torch.cat([log_probs_BTC[:, :8], emissions(1, 4, seed=1)], dim=1)
    for free in (False, True):
        heard = [forward_scores(each, bank, one_clip(bank, 8), free=free) for each in (log_probs_BTC, padded_BTC)]
        assert torch.equal(*heard)


def spoken(path, num_classes=6, certain=0.97):
    """Emissions that say this path, a class a frame."""
    log_probs_TC = torch.full((len(path), num_classes), (1 - certain) / (num_classes - 1))
    log_probs_TC[torch.arange(len(path)), torch.tensor(path)] = certain
    return log_probs_TC.log()[None]


def test_a_term_inside_a_clip_costs_nothing_and_has_its_frames():
    bank = bank_of([3, 1, 1], num_classes=6)
    log_probs_BTC = spoken([0, 5, 0, 3, 3, 0, 1, 0, 1, 0, 4, 0])
    paths = best_paths(log_probs_BTC, bank, one_clip(bank, 12), free=True)
    assert (paths.scores_P.tolist(), paths.starts_P.tolist(), paths.ends_P.tolist()) == ([0.0], [3], [9])
    assert paths.sound_starts_S.tolist() == [3, 6, 8]
    assert paths.sound_ends_S.tolist() == [5, 7, 9]


def test_times_count_from_the_start_of_the_clip_and_not_of_the_span():
    bank = bank_of([2], [2], num_classes=6)
    pairs = Pairs(np.array([0, 1]), np.array([0, 0]), np.array([0, 3]), np.array([4, 7]))
    paths = best_paths(spoken([0, 2, 0, 0, 0, 2, 0]), bank, pairs)
    assert list(zip(paths.starts_P, paths.ends_P, strict=True)) == [(1, 2), (5, 6)]


def test_a_near_twin_differs_in_one_sound_or_one_gap():
    log_probs_BTC = spoken([0, 1, 0, 2, 0, 3, 0, 4, 0])
    bank = bank_of([1, 2, 3, 4], [1, 5, 3, 4], [1, 3, 4], num_classes=6)
    paths = best_paths(log_probs_BTC, bank, one_clip(bank, 9))
    right, twin, short = np.split(paths.sound_scores_S, paths.offsets_P1[1:-1])
    assert right.tolist() == [0, 0, 0, 0]
    assert np.flatnonzero(twin < -3).tolist() == [1]
    gaps = paths.gap_scores_N[paths.offsets_P1[2] + 2 :]
    assert short.tolist() == [0, 0, 0]
    assert np.flatnonzero(gaps < -3).tolist() == [1], "the sound that was heard lies in the gap before the second"


@pytest.mark.parametrize("free", [False, True])
def test_sounds_and_gaps_add_up_to_the_score(free):
    log_probs_BTC, bank = emissions(1, 20), bank_of([1, 2, 2, 1], [2, 1])
    paths = best_paths(log_probs_BTC, bank, one_clip(bank, 20), free=free)
    best_of_frames = 0.0 if free else log_probs_BTC.amax(dim=2).sum().item()
    for pair in range(2):
        sounds = slice(paths.offsets_P1[pair], paths.offsets_P1[pair + 1])
        gaps = slice(sounds.start + pair, sounds.stop + pair + 1)
        total = paths.sound_scores_S[sounds].sum() + paths.gap_scores_N[gaps].sum() + best_of_frames
        assert paths.scores_P[pair] == pytest.approx(total, abs=1e-4)
        assert (paths.sound_ends_S[sounds] > paths.sound_starts_S[sounds]).all()
        assert (paths.sound_starts_S[sounds][1:] >= paths.sound_ends_S[sounds][:-1]).all()


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize(("said", "num_frames"), [([1, 2], 1), ([1, 1], 2), ([1], 0), ([2] * 9, 5)])
def test_what_has_too_few_frames_scores_minus_infinity(said, num_frames, free):
    bank, log_probs_BTC = bank_of(said, [1]), emissions(1, 6)
    pairs = Pairs(np.array([0, 1]), np.array([0, 0]), np.array([1, 0]), np.array([1 + num_frames, 6]))
    paths = best_paths(log_probs_BTC, bank, pairs, free=free)
    assert forward_scores(log_probs_BTC, bank, pairs, free=free).isneginf().tolist() == [True, False]
    assert np.isneginf(paths.scores_P).tolist() == [True, False]
    assert np.isneginf(paths.sound_scores_S).tolist() == [True] * len(said) + [False]
    assert set(paths.sound_starts_S[:-1]) == set(paths.sound_ends_S[:-1]) == {1}


@pytest.mark.parametrize("free", [False, True])
def test_silence_of_a_certain_head_gives_finite_scores(free):
    silence_BTC = torch.tensor([60.0, 0.0, 0.0]).log_softmax(dim=0).expand(1, 50, 3)
    bank = bank_of([1], [1, 1, 2])
    assert forward_scores(silence_BTC, bank, one_clip(bank, 50), free=free).isfinite().all()
    assert np.isfinite(best_paths(silence_BTC, bank, one_clip(bank, 50), free=free).sound_scores_S).all()


def test_no_pairs_give_no_scores():
    bank = bank_of([1])
    none = one_clip(bank, 4).select(np.array([], np.int64))
    assert forward_scores(emissions(1, 4), bank, none).shape == (0,)
    assert best_paths(emissions(1, 4), bank, none).offsets_P1.tolist() == [0]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((0, 0, 0, 9), "pair 0: ends_P is 9"),
        ((0, 1, 0, 4), "pair 0: clips_P is 1"),
        ((2, 0, 0, 4), "pair 0: rows_P is 2"),
        ((0, 0, 3, 2), "pair 0: starts_P is 3"),
    ],
)
def test_pairs_that_point_nowhere_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        forward_scores(emissions(1, 6), bank_of([1], [2]), Pairs(*(np.array([value]) for value in pairs)))


def test_emissions_of_another_head_or_of_none_are_refused():
    bank = bank_of([1])
    with pytest.raises(ValueError, match=r"expected log-probabilities \(B, T, 3\), not \(1, 4, 7\)"):
        forward_scores(emissions(1, 4, num_classes=7), bank, one_clip(bank, 4))
    for wrong in (torch.nan, 0.5):
        with pytest.raises(ValueError, match="NaN or above 0"):
            best_paths(torch.full((1, 4, 3), wrong), bank, one_clip(bank, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("free", [False, True])
def test_a_gpu_gives_the_same_scores(free):
    log_probs_BTC, bank = emissions(1, 60), bank_of([1, 2, 2, 1], [2, 1], [1])
    pairs = one_clip(bank, 60)
    here, there = (forward_scores(log_probs_BTC.to(device), bank, pairs, free=free) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-4)
    paths, on_gpu = (best_paths(log_probs_BTC.to(device), bank, pairs, free=free) for device in ("cpu", "cuda"))
    np.testing.assert_array_equal(on_gpu.sound_starts_S, paths.sound_starts_S)
