"""Rows to identities: what is one term, and what stands in a text unlabelled."""

import datasets
import pytest

from qwen_term_retrieval.runs.sampling import Visit
from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.text.spellings import term_id
from qwen_term_retrieval.training.data.clips import TrainingClips, annotate_terms, training_glossary


def make_rows():
    return datasets.Dataset.from_dict(
        {
            "audio": [b"", b"", b""],
            "key": ["a", "b", "c"],
            "text": ["The patient has atrial fibrillation.", "AFib", ""],
            "terms": [["atrial fibrillation"], ["AFib"], []],
            "duration": [2.0, 1.0, 0.5],
        },
        features=datasets.Features(
            {
                "audio": datasets.Value("binary"),
                "key": datasets.Value("string"),
                "text": datasets.Value("string"),
                "terms": datasets.List(datasets.Value("string")),
                "duration": datasets.Value("float32"),
            }
        ),
    )


GLOSSARY = Glossary([{"term": "atrial fibrillation", "aliases": ["AFib"]}, "fibrillation", "aspirin"])


def test_aliases_share_one_identity():
    rows = annotate_terms(make_rows(), training_glossary(make_rows(), GLOSSARY))
    assert rows[0]["term_ids"] == rows[1]["term_ids"] == [term_id("atrial fibrillation")]


def test_aliases_are_spellings_of_their_own_and_each_is_said_where_the_other_is():
    rows = annotate_terms(make_rows(), training_glossary(make_rows(), GLOSSARY))
    spellings = [term_id("AFib"), term_id("atrial fibrillation")]
    assert [rows[0]["spelling_ids"], rows[1]["spelling_ids"]] == [spellings[1:], spellings[:1]]
    assert rows[1]["spoken_ids"] == sorted(spellings)
    assert sorted(rows[1]["same_text_ids"]) == sorted(spellings)


def test_labels_of_one_spelling_are_written_as_the_glossary_writes_it():
    rows = make_rows().map(lambda row: {"terms": [term.upper() for term in row["terms"]]})
    assert rows["terms"][:] == [["ATRIAL FIBRILLATION"], ["AFIB"], []]
    annotated = annotate_terms(rows, training_glossary(rows, GLOSSARY))
    assert annotated["terms"][:] == [["atrial fibrillation"], ["AFib"], []]
    assert annotated["spelling_ids"][:] == annotate_terms(make_rows(), GLOSSARY)["spelling_ids"][:]


def test_labels_of_one_spelling_that_no_glossary_writes_are_one_string():
    rows = datasets.concatenate_datasets([make_rows(), make_rows().map(lambda row: {"terms": ["AFIB"]})])
    annotated = annotate_terms(rows, training_glossary(rows))
    assert {term for terms in annotated["terms"][1:] for term in terms} == {"AFIB"}


def test_terms_inside_the_text_are_known_as_spoken_though_not_labelled():
    rows = annotate_terms(make_rows(), training_glossary(make_rows(), GLOSSARY))
    assert set(rows[0]["spoken_ids"]) == {term_id("AFib"), term_id("atrial fibrillation"), term_id("fibrillation")}


def test_a_term_of_many_words_is_found_in_a_text():
    long = "acute on chronic respiratory failure with hypoxia and mild hypercapnia"
    rows = make_rows().map(lambda row: {"text": f"Seen for {long} today."})
    assert term_id(long) in annotate_terms(rows, Glossary([long, "aspirin"]))[0]["spoken_ids"]


def test_an_unknown_text_has_no_identity():
    rows = annotate_terms(make_rows(), GLOSSARY)
    assert rows["text_id"][:] == [term_id("the patient has atrial fibrillation"), term_id("afib"), -1]
    assert rows[2]["spoken_ids"] == rows[2]["term_ids"] == []


def test_the_training_glossary_holds_each_term_once():
    assert training_glossary(make_rows()).texts == ["AFib", "atrial fibrillation"]
    assert training_glossary(make_rows(), GLOSSARY).texts == ["atrial fibrillation", "fibrillation", "aspirin"]


def test_a_missing_column_is_named_with_the_remedy():
    with pytest.raises(ValueError, match=r"no column \['terms'\].*qtr pack"):
        annotate_terms(make_rows().remove_columns("terms"), GLOSSARY)


def test_visits_bring_their_draw_to_the_row():
    clips = TrainingClips(annotate_terms(make_rows(), GLOSSARY))
    rows = clips.__getitems__([Visit(2, 11), Visit(0, 12)])
    assert [(row["key"], row["clip"], row["draw"]) for row in rows] == [("c", 2, 11), ("a", 0, 12)]
