"""No response is on both sides, and the side of a row is a matter of its response alone."""

import random

import pytest

from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.pretraining.text.preparation.splitting import split_pairs
from tests.doubles.text_pairs import made_up_pairs, read_parquet, write_pairs

# As in a dictionary: several words of one meaning, and the meaning spelled in several ways.
MEANINGS = [response for _, response in made_up_pairs(400)]
PAIRS = [(f"word {row}", MEANINGS[row % 400] if row % 3 else MEANINGS[row % 400].upper() + " ") for row in range(1600)]


def split(pairs, folder, **settings):
    folder.mkdir()
    source = write_pairs(folder / "pairs.parquet", pairs)
    summary = split_pairs(source, folder / "splits", quiet=True, **settings)
    return {path.stem: read_parquet(path) for path in (folder / "splits").iterdir()}, summary


def meanings(pairs):
    return {response.strip().lower() for _, response in pairs}


def test_validation_shares_no_response_with_training_though_words_share_theirs(tmp_path):
    sides, summary = split(PAIRS, tmp_path / "a")
    assert not meanings(sides["train"]) & meanings(sides["valid"])
    assert sorted(sides["train"] + sides["valid"]) == sorted(PAIRS)
    assert 0.05 < len(sides["valid"]) / len(PAIRS) < 0.15
    assert str(len(sides["train"])) in str(summary)


def test_a_split_by_rows_would_leak():
    rows = PAIRS[:]
    random.Random(42).shuffle(rows)
    assert len(meanings(rows[:160]) & meanings(rows[160:])) > 100


def test_rows_keep_their_side_in_any_order_and_any_company(tmp_path):
    sides, _ = split(PAIRS, tmp_path / "a")
    shuffled = PAIRS[:]
    random.Random(1).shuffle(shuffled)
    others, _ = split(shuffled, tmp_path / "b")
    fewer, _ = split(PAIRS[:700], tmp_path / "c")
    for name in ("train", "valid"):
        assert sorted(others[name]) == sorted(sides[name])
        assert set(fewer[name]) <= set(sides[name])
    assert split(PAIRS, tmp_path / "d", seed=7)[0] != sides


def test_exact_duplicates_are_left_out_and_the_first_is_kept_in_its_place(tmp_path):
    sides, summary = split([*PAIRS, *PAIRS[:300], ("ab", "c"), ("a", "bc")], tmp_path / "a")
    assert summary.num_duplicates == 300
    assert sum(map(len, sides.values())) == len(PAIRS) + 2
    order = {pair: place for place, pair in enumerate(PAIRS)}
    places = [order[pair] for pair in sides["train"] if pair in order]
    assert places == sorted(places)
    kept, _ = split([*PAIRS, *PAIRS[:300]], tmp_path / "b", deduplicate=False)
    assert sum(map(len, kept.values())) == len(PAIRS) + 300


def test_a_test_set_takes_its_share_from_training_and_moves_nothing_in_validation(tmp_path):
    sides, _ = split(PAIRS, tmp_path / "a")
    three, _ = split(PAIRS, tmp_path / "b", test=0.2)
    assert three["valid"] == sides["valid"]
    assert 0.1 < len(three["test"]) / len(PAIRS) < 0.3
    assert not meanings(three["test"]) & meanings(three["train"])


def test_splits_that_are_given_are_taken_as_they_are_and_nothing_of_theirs_is_trained_on(tmp_path):
    valid = [(f"heard {row}", MEANINGS[row].upper()) for row in (3, 3, 7)]
    test = [("seen", MEANINGS[11])]
    given = {
        "valid_source": write_pairs(tmp_path / "valid.parquet", valid),
        "test_source": write_pairs(tmp_path / "test.parquet", test),
    }
    sides, summary = split([*PAIRS, *PAIRS[:9]], tmp_path / "a", **given)
    assert (sides["valid"], sides["test"]) == (valid, test)
    assert sides["train"] == [pair for pair in PAIRS if not meanings([pair]) & meanings([*valid, *test])]
    assert (summary.num_shared, summary.num_duplicates) == (12, 9)
    assert "12 with a response of the given splits" in str(summary)
    sides, _ = split(PAIRS, tmp_path / "b", test_source=given["test_source"])  # validation by its share
    assert 0.05 < len(sides["valid"]) / len(PAIRS) < 0.15
    assert not meanings(sides["test"]) & meanings(sides["train"] + sides["valid"])


def test_what_cannot_be_split_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="something is left to train on"):
        split(PAIRS, tmp_path / "a", valid=0.7, test=0.3)
    with pytest.raises(ValueError, match="valid gets none of 2 rows"):
        split(PAIRS[:2], tmp_path / "b", valid=1e-9)
    with pytest.raises(CorpusError, match=r"row 2: no prompt or no response"):
        split([("a", "b"), ("a", None)], tmp_path / "c")
    with pytest.raises(CorpusError, match="no column 'prompt'; it has question"):
        split_pairs(write_pairs(tmp_path / "q.parquet", PAIRS, ("question", "answer")), tmp_path / "d", quiet=True)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".incomplete" and any(path.glob("*.parquet"))]
