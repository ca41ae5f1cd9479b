"""Pairs from every kind of file, with all that such files hold in the wild."""

import gzip
import json

import pytest

from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.pretraining.text.preparation.converting import convert_pairs
from tests.doubles.text_pairs import made_up_pairs, read_parquet, write_pairs

PAIRS = [("a dog", 'an animal, "domestic",\nwith four legs'), ("Ł", "a letter ☃ 𝄞"), ("x", " y ")]


def convert(source, tmp_path, **settings):
    summary = convert_pairs(source, tmp_path / "out.parquet", quiet=True, **settings)
    return read_parquet(tmp_path / "out.parquet"), summary


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "ndjson", "parquet"])
def test_every_kind_of_file_gives_the_same_pairs_quoted_newlines_and_all(tmp_path, suffix):
    source = write_pairs(tmp_path / f"pairs.{suffix}", PAIRS)
    assert convert(source, tmp_path)[0] == PAIRS


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path, suffix):
    source = write_pairs(tmp_path / f"pairs.{suffix}", PAIRS)
    source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes())
    assert convert(source, tmp_path)[0] == PAIRS


def test_columns_of_other_names_are_renamed_and_files_of_a_folder_are_one(tmp_path):
    folder = tmp_path / "faq"
    folder.mkdir()
    write_pairs(folder / "a.csv", PAIRS[:1], ("question", "answer"))
    write_pairs(folder / "b.jsonl", PAIRS[1:], ("question", "answer"))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress((folder / "b.jsonl").read_bytes()))
    pairs, summary = convert(folder, tmp_path, columns={"prompt": "question", "response": "answer"})
    assert pairs == [*PAIRS, *PAIRS[1:]]
    assert summary.num_rows == 5
    with pytest.raises(CorpusError, match=r"no column 'prompt'; it has question, answer"):
        convert_pairs(folder / "a.csv", tmp_path / "x.parquet", quiet=True)


BAD_LINES = {
    "no response": '{"prompt": "a"}',
    "response is empty": '{"prompt": "a", "response": "  "}',
    "prompt is no text": '{"prompt": 3, "response": "b"}',
    "not UTF-8": '{"prompt": "a", "response": "\\ud800"}',
    "not an object": "[1, 2]",
    "not JSON": '{"prompt": "a", ',
}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_a_row_that_is_no_pair_is_refused_with_its_place_or_left_out_and_counted_by_reason(tmp_path, reason):
    source = tmp_path / "pairs.jsonl"
    good = json.dumps({"prompt": "a", "response": "b"})
    source.write_text("\n".join([good, BAD_LINES[reason], good]) + "\n")
    with pytest.raises(CorpusError, match=rf"pairs.jsonl, line 2: {reason}.*on_error='skip'"):
        convert(source, tmp_path)
    assert not (tmp_path / "out.parquet").exists()
    pairs, summary = convert(source, tmp_path, on_error="skip")
    assert pairs == [("a", "b"), ("a", "b")]
    assert summary.skipped == {reason: 1}


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
def test_bytes_that_are_no_utf8_cost_their_own_row_alone(tmp_path, suffix):
    source = write_pairs(tmp_path / f"pairs.{suffix}", [("one", "1"), ("caf@", "2"), ("three", "3")])
    source.write_bytes(source.read_bytes().replace(b"@", b"\xe9"))
    with pytest.raises(CorpusError, match="not UTF-8"):
        convert(source, tmp_path)
    pairs, summary = convert(source, tmp_path, on_error="skip")
    assert pairs == [("one", "1"), ("three", "3")]
    assert summary.skipped == {"not UTF-8": 1}


def test_rows_of_csv_with_too_few_or_too_many_cells_are_counted(tmp_path):
    source = tmp_path / "pairs.csv"
    source.write_text("prompt,response\na,b\na\na,b,c\n\nc,d\n")
    pairs, summary = convert(source, tmp_path, on_error="skip")
    assert pairs == [("a", "b"), ("c", "d")]
    assert summary.skipped == {"wrong number of cells": 2}


def test_nulls_of_parquet_are_counted_and_not_fatal(tmp_path):
    source = write_pairs(tmp_path / "pairs.parquet", [("a", "b"), ("a", None), ("c", "d")])
    pairs, summary = convert(source, tmp_path, on_error="skip")
    assert pairs == [("a", "b"), ("c", "d")]
    assert summary.skipped == {"no response": 1}


def test_a_json_list_that_breaks_off_is_an_error_even_where_rows_may_be_skipped(tmp_path):
    source = write_pairs(tmp_path / "pairs.json", made_up_pairs(20))
    source.write_bytes(source.read_bytes()[:-300])
    with pytest.raises(CorpusError, match=r"damaged after row 1\d"):
        convert(source, tmp_path, on_error="skip")
    assert not (tmp_path / "out.parquet").exists()


def test_nothing_is_written_over_unasked(tmp_path):
    source = write_pairs(tmp_path / "pairs.csv", PAIRS)
    convert(source, tmp_path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        convert(source, tmp_path)
    assert convert(source, tmp_path, overwrite=True)[0] == PAIRS
