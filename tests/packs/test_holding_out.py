"""Where a corpus names no validation split, some of it is held out: no text and, where it can be, no voice in both."""

import datasets
import pytest

from qwen_term_retrieval.packs.holding_out import hold_out


def make_rows(num_texts, speakers, **columns):
    rows = [
        {"text": f"phrase {text}", "terms": [], "speaker": speaker} for speaker in speakers for text in range(num_texts)
    ]
    return datasets.Dataset.from_list([row | columns for row in rows])


def test_no_text_and_no_speaker_is_in_both_parts():
    kept, held, how = hold_out(make_rows(100, [f"s{number}" for number in range(50)]), 0.1, "rows")
    for column in ("text", "speaker"):
        assert not {*kept[column]} & {*held[column]}
    assert (len(kept), len(held)) == (90 * 45, 10 * 5)
    assert how == (
        "50 of 5000 clips are held out to judge by (by text and speaker, 5 of 50 speakers), 4050 are trained on, "
        "900 are in neither: their text or speaker is in the other part"
    )


@pytest.mark.parametrize("speakers", [["a", "b"], [None], [f"s{number}" for number in range(6)]])
def test_few_or_unknown_speakers_are_left_out_of_account(speakers):
    kept, held, how = hold_out(make_rows(20, speakers), 0.1, "rows")
    assert not {*kept["text"]} & {*held["text"]}
    assert (len(kept), len(held)) == (18 * len(speakers), 2 * len(speakers))
    assert "(by text" in how


def test_the_same_rows_are_held_out_whatever_their_order():
    rows = make_rows(40, [None])
    _, held, _ = hold_out(rows, 0.25, "rows")
    _, again, _ = hold_out(rows.shuffle(seed=1), 0.25, "rows")
    assert sorted(held["text"]) == sorted(again["text"])


def test_texts_that_are_one_term_are_one_text():
    rows = datasets.Dataset.from_list(
        [{"text": text, "terms": [], "speaker": None} for text in ("Folder 7", "folder seven", "shock", "gout")]
    )
    kept, held, _ = hold_out(rows, 0.4, "rows")
    assert len(kept) + len(held) == 4
    assert len({"Folder 7", "folder seven"} & {*held["text"]}) != 1


def test_what_cannot_be_divided_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"mine: 3 clips of 1 texts cannot be divided .* Give a validation split"):
        hold_out(make_rows(1, ["a", "b", "c"]), 0.1, "mine")
    with pytest.raises(ValueError, match="eval_fraction must be above 0 and below 1, not 1"):
        hold_out(make_rows(9, ["a"]), 1, "mine")
