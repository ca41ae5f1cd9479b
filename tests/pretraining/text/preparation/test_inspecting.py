"""The report counts what is there."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from tokenizers import Tokenizer

from qwen_term_retrieval.errors import CorpusError
from qwen_term_retrieval.pretraining.text.preparation.converting import convert_pairs
from qwen_term_retrieval.pretraining.text.preparation.inspecting import inspect_pairs
from qwen_term_retrieval.pretraining.text.preparation.lengths import Lengths
from qwen_term_retrieval.pretraining.text.preparation.splitting import split_pairs
from qwen_term_retrieval.tokens.sources import read_documents
from tests.doubles.text_pairs import made_up_pairs, write_pairs
from tests.doubles.token_corpus import train_bpe

PAIRS = made_up_pairs(300)


@given(st.lists(st.integers(0, 300), min_size=1), st.integers(0, 300))
def test_lengths_know_their_quantiles_and_what_a_limit_cuts(lengths, limit):
    counted = Lengths()
    counted.add(lengths[::2])
    counted.add(lengths[1::2])
    summary = counted.summary()
    assert summary["mean"] == pytest.approx(np.mean(lengths), abs=0.01)
    assert (summary["min"], summary["max"]) == (min(lengths), max(lengths))
    assert summary["median"] == np.quantile(lengths, 0.5, method="inverted_cdf")
    assert counted.cut_by(limit)["texts"] == pytest.approx(np.mean(np.array(lengths) > limit), abs=1e-4)
    assert sum(texts for *_, texts in counted.histogram()) == len(lengths)


def test_duplicates_nulls_lengths_and_what_is_cut_are_counted_as_by_hand(tmp_path):
    tokenizer = Tokenizer.from_file(str(train_bpe(tmp_path / "tokenizer.json")))
    rows = [*PAIRS, *PAIRS[:40], ("another word", PAIRS[0][1].upper()), ("a", None), ("a", "")]
    source = write_pairs(tmp_path / "pairs.parquet", rows)
    report = inspect_pairs(source, tokenizer=tokenizer, max_seq_len=16, quiet=True)
    assert (report.num_rows, report.num_duplicates) == (343, 40)
    assert report.rejected == {"response is null": 1, "response is empty": 1}
    assert report.num_distinct_responses == len({response for _, response in PAIRS})
    tokens = [len(tokenizer.encode(response).ids) + 1 for _, response in rows[:341]]
    found = report.as_json()["lengths"]["tokens"]["response"]
    assert found["max"] == max(tokens)
    assert found["cut"]["texts"] == pytest.approx(np.mean(np.array(tokens) > 16), abs=1e-4)
    assert found["cut"]["of_all"] == pytest.approx(sum(max(0, n - 16) for n in tokens) / sum(tokens), abs=1e-4)
    red = [int(start) for start in re.findall(r'title="(\d+)–[^"]*"[^>]* class="cut"', report.page())]
    assert red
    assert min(red) > 16


def test_a_row_of_parquet_that_is_no_utf8_is_counted_and_where_it_cannot_be_left_out_named(tmp_path):
    path = tmp_path / "pairs.parquet"
    texts = pa.array([response.encode() for _, response in PAIRS[:40]] + [b"\xff\xfe"], pa.binary())
    prompts = pa.array(["a"] * 41)
    parquet.write_table(
        pa.table({"response": pa.StringArray.from_buffers(41, *texts.buffers()[1:]), "prompt": prompts}), path
    )
    assert inspect_pairs(path, quiet=True).rejected == {"not UTF-8": 1}
    with pytest.raises(CorpusError, match="row 41: not UTF-8"):
        split_pairs(path, tmp_path / "splits", quiet=True)
    with pytest.raises(CorpusError, match="a text is not UTF-8"):
        list(read_documents(path, ("prompt", "response")))
    converted = convert_pairs(path, tmp_path / "whole.parquet", on_error="skip", quiet=True)
    assert (converted.num_rows, converted.skipped) == (40, {"not UTF-8": 1})


def test_the_report_is_text_json_and_a_page(tmp_path):
    source = write_pairs(tmp_path / "pairs.parquet", [("<b>", "bold & <i>"), *PAIRS])
    report = inspect_pairs(source, quiet=True)
    report.save(tmp_path / "report")
    assert "301 rows" in (tmp_path / "report" / "report.txt").read_text()
    assert json.loads((tmp_path / "report" / "report.json").read_text())["rows"] == 301
    page = (tmp_path / "report" / "report.html").read_text()
    assert "bold &amp; &lt;i&gt;" in page
    assert page.count("<figure>") == 2
