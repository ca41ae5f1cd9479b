"""What an entry of a glossary may say, in every format; what is refused, and what is named."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from qwen_term_retrieval.text.entries import MAX_TERM_CHARACTERS
from qwen_term_retrieval.text.glossary import Glossary, Term

ENTRY = {"term": "gout", "pronunciations": ["/ɡ aʊ t/", "gowt"], "weight": 2.0, "threshold": 0.7}
TABLE = "term{0}pronunciations{0}weight{0}threshold\ngout{0}/ɡ aʊ t/|gowt{0}2{0}0.7\nshock{0}{0}{0}\n"


def write_glossary(folder, suffix):
    path = folder / f"terms.{suffix}"
    if suffix == "parquet":
        rows = [ENTRY, {"term": "shock", "pronunciations": None, "weight": None, "threshold": None}]
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif suffix in ("csv", "tsv"):
        path.write_text(TABLE.format("," if suffix == "csv" else "\t"), encoding="utf-8")
    elif suffix == "jsonl":
        path.write_text(f'{json.dumps(ENTRY)}\n"shock"\n', encoding="utf-8")
    elif suffix == "keyed.json":
        path.write_text(json.dumps({"gout": ENTRY, "shock": None}), encoding="utf-8")
    else:
        path.write_text(json.dumps([ENTRY, "shock"]), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["json", "keyed.json", "jsonl", "csv", "tsv", "parquet"])
def test_every_format_carries_pronunciations_weight_and_threshold(tmp_path, suffix):
    gout, shock = Glossary.from_file(write_glossary(tmp_path, suffix))
    assert gout.pronunciations == gout.sayings == ("[[ɡ aʊ t]]", "gowt")
    assert (gout.weight, gout.threshold) == (2.0, 0.7)
    assert (shock.pronunciations, shock.weight, shock.threshold, shock.sayings) == ((), 1.0, None, ("shock",))


def test_a_term_given_as_such_keeps_what_its_entry_says():
    (term,) = Glossary([Term("gout", 1, pronunciations=("/ɡ aʊ t/",), weight=3.0, threshold=0.2)])
    assert (term.sayings, term.weight, term.threshold) == (("[[ɡ aʊ t]]",), 3.0, 0.2)
    assert Glossary([term])[0] == term


def test_the_key_in_the_singular_is_taken_too():
    assert Glossary([{"term": "gout", "pronunciation": "gowt"}])[0].pronunciations == ("gowt",)


def test_keys_that_say_nothing_are_named_with_what_was_meant():
    glossary = Glossary([{"term": "gout", "wieght": 2, "domain": "medicine"}])
    assert list(glossary.unknown_keys) == ["wieght", "domain"]
    assert glossary.summary() == ("1 terms. Not understood, and left out: 'wieght'; did you mean 'weight'?, 'domain'")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("weight", 0, "weight must be a number from 0.001 to 1000, not 0"),
        ("weight", "heavy", "weight must be a number from 0.001 to 1000, not 'heavy'"),
        ("weight", True, "weight must be a number"),
        ("threshold", 1.5, "threshold must be a number from -1 to 1, not 1.5"),
        ("pronunciations", [7], "pronunciations must be strings"),
        ("pronunciations", ["…"], "the pronunciation '…' says nothing; give a respelling"),
    ],
)
def test_values_out_of_range_are_refused_with_the_entry_and_the_key(key, value, message):
    with pytest.raises(ValueError, match=f"^g, entry 2: {message}"):
        Glossary(["sepsis", {"term": "gout", key: value}], source="g")


@pytest.mark.parametrize("place", ["term", "alias", "pronunciation"])
def test_a_word_of_absurd_length_is_refused_with_its_row_at_once(place):
    word = "a" * 2_000_000
    entry = {"term": word} if place == "term" else {"term": "gout", f"{place}s".replace("ss", "ses"): [word]}
    entry = {"term": "gout", "aliases": [word]} if place == "alias" else entry
    with pytest.raises(ValueError, match=r"g, entry 2: a term of 2,000,000 characters \('aaaa.*the limit is 1,000"):
        Glossary(["sepsis", entry], source="g")
    assert Glossary(["b" * MAX_TERM_CHARACTERS])


def test_what_is_left_out_is_named_entry_by_entry():
    glossary = Glossary(["sepsis", "…", "Sepsis!", {"term": "shock", "aliases": ["sepsis"]}, "SEPSIS", "sepsis."])
    assert glossary.name_dropped() == [
        "entry 2, '…': nothing is said",
        "entry 3, 'Sepsis!': said as 'sepsis'",
        "entry 4, alias 'sepsis': said as 'sepsis'",
        "entry 5, 'SEPSIS': said as 'sepsis'",
        "entry 6, 'sepsis.': said as 'sepsis'",
    ]
    assert "; 2 more, see `qtr pronounce`" in glossary.summary()
