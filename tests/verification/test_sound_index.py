"""A `SoundIndex` finds terms by their sounds: each once, at its place, whatever was added or removed in between."""

import shutil

import numpy as np
import pytest
import torch

from qwen_term_retrieval.verification.alignment import Pairs, forward_scores
from qwen_term_retrieval.verification.pronunciations import PronunciationBank
from qwen_term_retrieval.verification.sound_index import SOUND_BONUS, SoundIndex

CLASSES = 12


def random_bank(number, first_owner=0, seed=0):
    rng = np.random.default_rng(seed)
    ways = [rng.integers(1, CLASSES, rng.integers(3, 9)).tolist() for _ in range(number)]
    bank = PronunciationBank.of([[way] for way in ways], CLASSES)
    return PronunciationBank(bank.classes_S, bank.offsets_R1, bank.owners_R + np.int32(first_owner), CLASSES)


def index_of(*banks):
    index = SoundIndex(CLASSES)
    for bank in banks:
        index.add(bank)
    return index


def spoken(sounds, seed=0, around=5):
    """Log-probabilities of a head that hears these sounds, every fourth frame one, between stretches of silence."""
    rng = np.random.default_rng(seed)
    logits_TC = rng.normal(0, 0.5, (2 * around + 4 * len(sounds), CLASSES)).astype(np.float32)
    logits_TC[:, 0] += 8
    logits_TC[around + 4 * np.arange(len(sounds)), sounds] += 14
    return torch.from_numpy(logits_TC).log_softmax(dim=1)


def assert_same_hits(found, expected):
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)


@pytest.mark.parametrize("row", [0, 123, 999])
def test_a_spoken_term_comes_first_with_its_frames_and_its_forward_score(row):
    bank = random_bank(1000)
    log_probs_TC = spoken(bank[row])
    hits = index_of(bank).search(log_probs_TC, top_k=5)
    assert hits.terms_K[0] == row
    assert (hits.starts_K[0], hits.ends_K[0]) == (5, 5 + 4 * (len(bank[row]) - 1) + 1)
    clip = Pairs.of_whole_clips(hits.terms_K, np.zeros(5, np.int64), [len(log_probs_TC)])
    np.testing.assert_allclose(hits.scores_K, forward_scores(log_probs_TC[None], bank, clip), rtol=1e-5)
    assert (np.diff(hits.scores_K) <= 0).all()
    assert hits.exact


def test_a_term_between_others_is_found_at_its_place():
    bank = random_bank(1000)
    longest = int(bank.lengths.argmax())
    log_probs_TC = torch.cat([spoken(bank[3]), spoken(bank[longest]), spoken(bank[4])])
    start = 10 + 4 * len(bank[3]) + 5
    hits = index_of(bank).search(log_probs_TC, top_k=3, free=True)
    place = hits.terms_K.tolist().index(longest)
    assert (hits.starts_K[place], hits.ends_K[place]) == (start, start + 4 * (len(bank[longest]) - 1) + 1)
    assert hits.scores_K[place] == pytest.approx(SOUND_BONUS * len(bank[longest]), abs=0.5)


def test_a_term_is_found_once_by_its_best_pronunciation():
    bank = PronunciationBank.of([[[1, 2, 3], [4, 5, 6], [4, 5, 7]], [[4, 5, 8]], [[9, 9]]], CLASSES)
    hits = index_of(bank).search(spoken([4, 5, 6]), top_k=3)
    assert hits.terms_K[:2].tolist() == [0, 1]
    assert len(set(hits.terms_K)) == 3


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("sizes", [(990, 10), (500, 500), (900, 90, 9, 1), (0, 1000)])
def test_terms_added_later_are_found_as_if_they_had_been_there(sizes, free):
    bank = random_bank(1000)
    rows = np.split(np.arange(1000), np.cumsum(sizes)[:-1])
    whole, later = index_of(bank), index_of(*(bank.select(part) for part in rows))
    assert len(later) == 1000
    assert later.bank.owners_R.tolist() == list(range(1000))
    for row in (0, 495, 999):
        assert_same_hits(later.search(spoken(bank[row]), free=free), whole.search(spoken(bank[row]), free=free))


def test_terms_that_are_gone_leave_their_place_to_others():
    bank = random_bank(500)
    index, live_N = index_of(bank), np.ones(500, dtype=bool)
    before = index.search(spoken(bank[7]), top_k=4)
    live_N[before.terms_K[:2]] = False
    after = index.search(spoken(bank[7]), top_k=2, live_N=live_N)
    assert after.terms_K.tolist() == before.terms_K[2:].tolist()
    with pytest.raises(ValueError, match="the mask of 499 terms does not reach to term 499"):
        index.search(spoken(bank[7]), live_N=live_N[:-1])


def test_an_index_is_read_back_from_its_folder(tmp_path):
    bank = random_bank(300)
    index = index_of(bank, random_bank(20, first_owner=300, seed=1))
    index.save(tmp_path)
    opened = SoundIndex.open(tmp_path, CLASSES)
    assert repr(opened) == "<SoundIndex of 320 pronunciations in 2 trees>"
    assert_same_hits(opened.search(spoken(bank[5])), index.search(spoken(bank[5])))
    opened.add(random_bank(300, first_owner=320, seed=2))
    assert len(opened) == 620
    with pytest.raises(ValueError, match=r"sounds_0: 300 pronunciations of 12 classes.*for a head of 9"):
        SoundIndex.open(tmp_path, 9)


def test_an_index_that_lacks_a_part_is_not_opened(tmp_path):
    index_of(random_bank(300), random_bank(20, first_owner=300)).save(tmp_path)
    (tmp_path / "sounds_0" / "owners.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"sounds_0/owners\.npy"):
        SoundIndex.open(tmp_path, CLASSES)
    shutil.rmtree(tmp_path / "sounds_0")
    with pytest.raises(FileNotFoundError, match="sounds_0"):
        SoundIndex.open(tmp_path, CLASSES)


def test_an_empty_index_is_read_back_empty(tmp_path):
    SoundIndex(CLASSES).save(tmp_path)
    assert len(SoundIndex.open(tmp_path, CLASSES)) == 0


@pytest.mark.parametrize("free", [False, True])
def test_a_clip_too_short_for_most_terms_has_few_hits(free):
    bank = PronunciationBank.of([[[1]], [[1, 2]], [[2, 2]], [[1, 2, 3]]], CLASSES)
    index, unsure_TC = index_of(bank), torch.full((3, CLASSES), 1 / CLASSES).log()
    for num_frames, found in ((0, set()), (1, {0}), (2, {0, 1}), (3, {0, 1, 2, 3})):
        hits = index.search(unsure_TC[:num_frames], free=free)
        assert set(hits.terms_K.tolist()) == found
        assert np.isfinite(hits.scores_K).all()


@pytest.mark.parametrize("free", [False, True])
def test_silence_and_impossible_classes_give_finite_scores_or_no_hits(free):
    index = index_of(random_bank(1000))
    assert np.isfinite(index.search(spoken([]).repeat(20, 1), free=free).scores_K).all()
    impossible_TC = torch.full((30, CLASSES), -torch.inf)
    impossible_TC[:, 0] = 0
    assert not np.isnan(index.search(impossible_TC, free=free).scores_K).any()


def test_an_index_without_terms_finds_none():
    assert len(SoundIndex(CLASSES).search(spoken([1])).terms_K) == 0


def test_what_does_not_fit_the_head_is_refused():
    index = index_of(random_bank(10))
    with pytest.raises(ValueError, match=r"expected log-probabilities \(T, 12\), not \(1, 5, 12\)"):
        index.search(torch.zeros(1, 5, CLASSES))
    with pytest.raises(ValueError, match="NaN or above 0"):
        index.search(torch.full((5, CLASSES), torch.nan))
    with pytest.raises(ValueError, match="must be at least 1, not 0 and 5"):
        index.search(spoken([1]), top_k=0, beam=5)
    with pytest.raises(ValueError, match="of 4 classes do not fit a head of 12"):
        index.add(PronunciationBank.of([[[1]]], 4))
