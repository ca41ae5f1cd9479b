"""A bank of pronunciations holds what it was made of, and refuses by name what no head could say."""

import numpy as np
import pytest

from qwen_term_retrieval.text.pronouncing import Pronouncer
from qwen_term_retrieval.verification.pronunciations import PronunciationBank

TERMS = [[[3, 1, 2]], [[1], [2, 2]], [[2, 1, 3, 1]]]


@pytest.fixture
def bank():
    return PronunciationBank.of(TERMS, num_classes=4)


def as_lists(bank):
    return [(int(owner), bank[row].tolist()) for row, owner in enumerate(bank.owners_R)]


def test_a_bank_holds_every_pronunciation_and_whose_it_is(bank):
    assert as_lists(bank) == [(0, [3, 1, 2]), (1, [1]), (1, [2, 2]), (2, [2, 1, 3, 1])]
    assert bank.lengths.tolist() == [3, 1, 2, 4]
    assert (bank.classes_S.dtype, bank.offsets_R1.dtype, bank.owners_R.dtype) == (np.int16, np.int64, np.int32)


def test_rows_of_terms_are_selected_in_the_order_asked_for(bank):
    assert as_lists(bank.select(np.array([3, 0, 3]))) == [(2, [2, 1, 3, 1]), (0, [3, 1, 2]), (2, [2, 1, 3, 1])]
    assert len(bank.select(np.array([], dtype=np.int64))) == 0


def test_banks_are_joined_end_to_end(bank):
    assert as_lists(bank.join(bank.select(np.array([2])))) == [*as_lists(bank), (1, [2, 2])]
    with pytest.raises(ValueError, match="4 classes and one of 5 are of two heads"):
        bank.join(PronunciationBank.of([[[4]]], num_classes=5))


def test_a_bank_is_read_back_from_its_files(bank, tmp_path):
    bank.save(tmp_path)
    opened = PronunciationBank.open(tmp_path)
    assert as_lists(opened) == as_lists(bank)
    assert isinstance(opened.classes_S, np.memmap)


def test_what_a_pronouncer_gives_is_numbered_by_the_alphabet_of_the_head():
    said = Pronouncer("characters", several=False).pronunciations(["ab", "ca"])
    assert as_lists(PronunciationBank.of_symbols(said, ["a", "b", "c"])) == [(0, [1, 2]), (1, [3, 1])]


def test_sounds_that_the_head_does_not_know_are_named_with_their_term():
    said = Pronouncer("characters", several=False).pronunciations(["ab", "cab"])
    with pytest.raises(ValueError, match=r"term 1 is said with sounds that the phoneme head does not know: \['c'\]"):
        PronunciationBank.of_symbols(said, ["a", "b"])


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([[[1]], []], "term 1 has no pronunciation"),
        ([[[1]], [[2], []]], r"pronunciation 2 \(of term 1\) is empty"),
        ([[[1, 0]]], r"pronunciation 0 \(of term 0\) has class 0"),
        ([[[1]], [[2, 4]]], r"pronunciation 1 \(of term 1\) has class 4; the head's sounds are 1 to 3"),
        ([[[-2]]], "has class -1"),
        ([[[1 << 16 | 1]]], "has class 32767"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(terms, message):
    with pytest.raises(ValueError, match=message):
        PronunciationBank.of(terms, num_classes=4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes_S": np.array([1, 2])}, "classes_S must be one row of int16, not int64"),
        ({"owners_R": np.array([[0]], np.int32)}, r"owners_R must be one row of int32, not int32 \(1, 1\)"),
        ({"owners_R": np.array([0, 0], np.int32)}, "2 pronunciations need one offset more, not 2"),
        ({"owners_R": np.array([-1], np.int32)}, "terms are numbered from 0"),
        ({"offsets_R1": np.array([0, 3])}, "offsets must ascend from 0 to the 2 sounds"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(changed, message):
    arrays = {
        "classes_S": np.array([1, 2], np.int16),
        "offsets_R1": np.array([0, 2]),
        "owners_R": np.array([0], np.int32),
    }
    with pytest.raises(ValueError, match=message):
        PronunciationBank(**(arrays | changed), num_classes=4)


def test_a_damaged_file_is_named(bank, tmp_path):
    bank.save(tmp_path)
    np.save(tmp_path / "owners.npy", np.zeros(2, np.int32))
    with pytest.raises(ValueError, match=f"{tmp_path}.*Make the index again"):
        PronunciationBank.open(tmp_path)
