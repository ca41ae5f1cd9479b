"""What is one term, and what a glossary file may hold."""

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.text.spellings import normalize_term, term_id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Folder 7", "folder seven"),
        ("Parkinson’s disease", "parkinson's  Disease"),
        ("well-known", "well known"),
        ("ﬁbrillation", "fibrillation"),
        ("room 21", "room twenty one"),
        ("the 30th", "the thirtieth"),
        ("21st century", "twenty first century"),
    ],
)
def test_what_sounds_the_same_is_one_term(one, other):
    assert normalize_term(one) == normalize_term(other)
    assert term_id(one) == term_id(other)


def test_c_and_its_relatives_are_three_terms():
    assert len({term_id("C"), term_id("C++"), term_id("C#")}) == 3


def test_ids_are_the_same_in_every_run():
    assert term_id("atrial fibrillation") == 1860832978646134333


@pytest.mark.parametrize("language", [None, "en", "en-US", "EN_gb", ""])
def test_english_and_no_language_leave_the_id_as_it_is(language):
    assert term_id("atrial fibrillation", language) == 1860832978646134333
    glossary = Glossary([{"term": "atrial fibrillation", "language": language}, "Atrial Fibrillation"])
    assert [term.term_id for term in glossary] == [1860832978646134333]


def test_one_spelling_in_two_languages_is_two_terms():
    glossary = Glossary(["Paris", {"term": "Paris", "language": "fr"}, {"term": "PARIS", "language": "fr_CA"}])
    assert [(term.text, term.language) for term in glossary] == [("Paris", None), ("Paris", "fr")]
    assert glossary.id_of("paris", "fr-BE") == glossary[1].term_id != glossary.id_of("paris") == glossary[0].term_id
    assert glossary.id_of("paris", "de") == glossary[0].term_id  # the entry without a language may be any
    assert glossary.num_duplicates == 1


def test_a_language_that_is_not_known_matches_any():
    glossary = Glossary([{"term": "pain", "language": "en"}, {"term": "fromage", "language": "fr"}])
    assert glossary.id_of("fromage") == glossary[1].term_id
    assert glossary.id_of("pain") == glossary.id_of("pain", "en") == glossary[0].term_id
    assert glossary.id_of("pain", "fr") is glossary.id_of("fromage", "de") is None


@pytest.mark.parametrize(
    ("language", "spoken"),
    [("fr", "dossier sept"), ("de-AT", "dossier sieben"), ("es", "dossier siete"), ("bg", "dossier 7")],
)
def test_digits_are_spelled_in_the_language_of_the_entry(language, spoken):
    glossary = Glossary([{"term": "dossier 7", "language": language}])
    assert normalize_term("Dossier 7", language) == spoken
    assert glossary.id_of(spoken, language) == glossary.id_of("Dossier 7") == glossary[0].term_id


def test_a_glossary_gives_its_language_to_entries_without_one():
    glossary = Glossary(["fromage", {"term": "cheese", "language": "en"}], language="fr")
    assert glossary.languages == ["fr", "en"]
    assert glossary.joined_by(["vin"]).languages == ["fr", "en", "fr"]


@pytest.mark.parametrize(("language", "number"), [("pl", "0th"), ("ca", "30th"), ("am", "1999"), ("xx", "7")])
def test_numbers_that_cannot_be_spelled_stay_digits(language, number):
    assert normalize_term(number, language) == number.removesuffix("th")


@given(st.text(max_size=40))
def test_normalizing_twice_changes_nothing(text):
    once = normalize_term(text)
    assert normalize_term(once) == once
    assert 0 <= term_id(text) < 1 << 63


def test_blanks_and_repeats_are_left_out_and_counted():
    glossary = Glossary(["sepsis", "  ", "Sepsis!", "…", "shock"])
    assert glossary.texts == ["sepsis", "shock"]
    assert glossary.summary() == (
        "2 terms, 2 blank and 1 repeated entries left out (entry 2, '  ': nothing is said; "
        "entry 3, 'Sepsis!': said as 'sepsis'; entry 4, '…': nothing is said)"
    )


def test_aliases_share_the_id_of_their_term():
    glossary = Glossary([{"term": "atrial fibrillation", "aliases": ["AFib", "AF"]}, "aspirin"])
    assert glossary.id_of("afib") == glossary.id_of("atrial fibrillation") == glossary[0].term_id
    assert "AF" in glossary
    assert "warfarin" not in glossary


def test_an_alias_never_takes_another_terms_spelling():
    glossary = Glossary(["aspirin", {"term": "acetylsalicylic acid", "aliases": ["Aspirin", "ASA"]}])
    assert glossary[1].aliases == ("ASA",)
    assert glossary.id_of("aspirin") == glossary[0].term_id
    assert (glossary.num_duplicates, glossary.num_foreign_aliases) == (0, 1)
    assert glossary.summary() == (
        "2 terms, aliases left out that another term has: 1 (entry 2, alias 'Aspirin': said as 'aspirin')"
    )


FILES = {
    "terms.txt": "sepsis\n\nshock\n",
    "terms.json": json.dumps(["sepsis", {"term": "shock"}]),
    "keyed.json": json.dumps({"sepsis": {"aliases": ["septicaemia"]}, "shock": {}}),
    "terms.jsonl": '"sepsis"\n{"term": "shock"}\n',
    "terms.csv": "term,aliases\nsepsis,septicaemia\nshock,\n",
    "languages.csv": "language,term\n,sepsis\nen,shock\n",
    "languages.jsonl": '{"term": "sepsis", "language": null}\n{"term": "shock", "language": "en"}\n',
    "terms.tsv": "domain\tterm\nmedicine\tsepsis\nmedicine\tshock\n",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_every_kind_of_file_is_read_whatever_system_wrote_it(tmp_path, name, line_end):
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + FILES[name].replace("\n", line_end).encode())
    assert Glossary.from_file(path).texts == ["sepsis", "shock"]


def test_a_separator_within_a_json_string_ends_no_line(tmp_path):
    path = tmp_path / "terms.jsonl"
    path.write_text('"septic\u2028shock"\n"gout\x85"\n', encoding="utf-8")
    assert list(map(normalize_term, Glossary.from_file(path).texts)) == ["septic shock", "gout"]


def test_a_page_break_in_a_list_ends_a_line(tmp_path):
    path = tmp_path / "terms.txt"
    path.write_text("sepsis\x0cgout\n", encoding="utf-8")
    assert Glossary.from_file(path).texts == ["sepsis", "gout"]


def test_a_list_under_a_term_holds_its_aliases(tmp_path):
    path = tmp_path / "terms.json"
    path.write_text('{"gout": ["podagra"], "shock": null}', encoding="utf-8")
    assert [term.spellings for term in Glossary.from_file(path)] == [("gout", "podagra"), ("shock",)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt", "json", "jsonl"])
@pytest.mark.parametrize(("encoding", "line"), [("utf-16", 1), ("latin-1", 2)])
def test_text_that_is_not_utf_8_is_refused_with_the_remedy(tmp_path, suffix, encoding, line):
    path = tmp_path / f"terms.{suffix}"
    path.write_bytes("term\ncaf\xe9\n".encode(encoding))
    with pytest.raises(ValueError, match=rf"terms\.{suffix}, line {line}: not UTF-8\. Save the file as UTF-8\."):
        Glossary.from_file(path)


def test_a_table_of_numbers_holds_them_as_they_are_written(tmp_path):
    path = tmp_path / "agents.csv"
    path.write_text("term,aliases\n007,\n0,1.10\n", encoding="utf-8")
    assert [term.spellings for term in Glossary.from_file(path)] == [("007",), ("0", "1.10")]


def test_parquet_is_read(tmp_path):
    parquet.write_table(pa.table({"term": ["sepsis", "choc"], "language": [None, "fr"]}), tmp_path / "terms.parquet")
    glossary = Glossary.from_file(tmp_path / "terms.parquet", language="la")
    assert (glossary.texts, glossary.languages) == (["sepsis", "choc"], ["la", "fr"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("book.xlsx", b"PK\x03\x04\x14\0\0\0", r"book\.xlsx is no text\. .* save a workbook as CSV"),
        ("book.csv", b"PK\x03\x04\x14\0\0\0", r"book\.csv is no text"),
        ("broken.json", b'["sepsis",\n', r"broken\.json, line 2: not JSON"),
        ("broken.jsonl", b'"sepsis"\n{oops\n', r"broken\.jsonl, line 2: not JSON"),
        ("wrong.csv", b"word\nsepsis\n", r"wrong\.csv: no column 'term'; it has \['word'\]"),
        ("list.json", b'["sepsis", 7]', r"list\.json, entry 2: expected a string or a mapping"),
        ("keyed.json", b'{"gout": {}, "sepsis": "x"}', r"keyed\.json, entry 2 \('sepsis'\): expected .*, not 'x'"),
        ("keyed.json", b'{"gout": [7]}', r"keyed\.json, entry 1: aliases must be strings"),
        (
            "odd.json",
            b'[{"term": "sepsis", "language": 7}]',
            r"odd\.json, entry 1: language must be a code such as 'fr'",
        ),
        ("long.txt", b"sepsis\n" + b"word " * 500, r"long\.txt, entry 2: a term of 500 words"),
        ("word.txt", b"sepsis\n" + b"w" * 2_000_000, r"word\.txt, entry 2: a term of 2,000,000 characters \('www"),
        ("alias.csv", b"term,aliases\nsepsis,gout|" + b"w" * 1001, r"alias\.csv, entry 1: a term of 1,001 characters"),
        ("blank.txt", b"\n \n", r"blank\.txt: holds no term \(2 blank"),
    ],
)
def test_bad_files_are_refused_with_file_and_row(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Glossary.from_file(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt does not exist"):
        Glossary.from_file(tmp_path / "nowhere.txt")


@pytest.mark.parametrize("delimiter", [";", "\t", ","])
def test_a_table_of_a_spreadsheet_may_be_divided_by_semicolons_or_tabs(tmp_path, delimiter):
    lines = [["term", "aliases"], ["sepsis", "SIRS|blood poisoning"], ["shock", ""]]
    text = "\r\n".join(delimiter.join(line) for line in lines)
    (tmp_path / "terms.csv").write_text(text, encoding="utf-8-sig", newline="")
    glossary = Glossary.from_file(tmp_path / "terms.csv")
    assert [term.spellings for term in glossary] == [("sepsis", "SIRS", "blood poisoning"), ("shock",)]


def test_a_bare_string_is_no_list_of_letters():
    with pytest.raises(ValueError, match=r"'San Francisco' is one string; one term is a list of one"):
        Glossary("San Francisco")
    assert (
        repr(Glossary(["sepsis", "Sepsis"])) == "<Glossary glossary: 1 terms, 0 blank and 1 repeated entries left out "
        "(entry 2, 'Sepsis': said as 'sepsis')>"
    )
