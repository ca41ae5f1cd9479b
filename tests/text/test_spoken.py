"""What is written, as it is said; which of it is one term; what a voice cannot read."""

import logging
import pickle

import pytest

from qwen_term_retrieval.text.glossary import Glossary
from qwen_term_retrieval.text.phonetics import get_phonemizer
from qwen_term_retrieval.text.pronouncing import Pronouncer, speakable
from qwen_term_retrieval.text.scripts import foreign_letters
from qwen_term_retrieval.text.spellings import normalize_term, term_id
from qwen_term_retrieval.text.spoken import AsSaid, as_written, spoken_forms
from qwen_term_retrieval.text.units import SYMBOLS, say_amount

ESPEAK = Pronouncer("espeak:en-us", several=True)


def sounds_of(text, language=None):
    return {"".join(way) for way in ESPEAK.pronunciations([text], [language])[0]}


@pytest.mark.parametrize(
    "terms",
    [
        ["/exit", "exit"],
        ["us", "US"],
        ["it", "IT"],
        ["5", "$5", "5%", "5°", "-5", "5 mg", "5 km", "№5"],
        ["10⁶", "106"],
        ["x²", "x³", "x2"],
        ["3.5", "35", "3 5"],
        [".NET", "net"],
        ["5 mg", "5 g", "5 µg"],
        ["€5", "$5", "£5"],
        ["C", "C++", "C#"],
        ["-", "/", "&", "@", "*"],
    ],
)
def test_what_sounds_different_is_different_terms(terms):
    glossary = Glossary(terms)
    assert glossary.texts == terms, glossary.name_dropped()
    assert len({frozenset(sounds_of(term)) for term in terms}) == len(terms)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5%", "five percent"),
        ("5 mg", "five milligrams"),
        ("$5", "5 dollars"),
        ("IL-6", "il 6"),
        ("MRI", "mri"),
        ("WHO GUIDELINES", "who guidelines"),
        ("and/or", "and or"),
        ("COVID‑19", "covid-19"),
        ("µg/mL", "μg/mL"),
        ("U.S.", "US"),
    ],
)
def test_what_sounds_the_same_stays_one_term_and_the_other_is_named(one, other):
    glossary = Glossary([one, other])
    assert normalize_term(one) == normalize_term(other)
    assert term_id(one) == term_id(other)
    assert glossary.name_dropped() == [f"entry 2, {other!r}: said as {one!r}"]


@pytest.mark.parametrize(
    ("text", "ways"),
    [
        ("Qwen3-32B", ("Qwen3 32B",)),
        ("and/or", ("and or", "and slash or")),
        ("24/7", ("24 7", "24 slash 7")),
        ("µg/mL", ("micrograms per milliliter",)),
        ("5 mg", ("5 milligrams",)),
        ("1 mg", ("1 milligram",)),
        ("5 mg/dL", ("5 milligrams per deciliter",)),
        ("IL-6", ("I.L. 6", "IL 6")),
        ("IL6", ("I.L. 6", "IL6")),
        ("№5", ("number 5",)),
        ("-", ("dash", "hyphen", "minus")),
        ("&", ("ampersand", "and")),
        ("🚀", ("rocket",)),
        ("launch 🚀", ("launch",)),
        ("1,500 mg", ("1500 milligrams",)),
        ("5–10 mg", ("5 to 10 milligrams", "5 10 milligrams")),
        ("AT&T", ("A.T. and T",)),
        ("R&D", ("R and D",)),
        ("RAG", ("RAG", "R.A.G.")),
        ("NASA", ("NASA", "N.A.S.A.")),
        ("API", ("A.P.I.", "API")),
        ("32B", ("32B", "32B")[:1]),
        ("5G", ("5G",)),
        ("90s", ("90s",)),
        ("5 V", ("5 volts",)),
        ("5V", ("5 V", "5 volts")),
        ("1/2", ("one half", "1 2", "1 slash 2")),
        ("the 30th", ("the 30th",)),
        ("well-known", ("well-known",)),
        ("Parkinson’s disease", ("Parkinson’s disease",)),
    ],
)
def test_every_way_to_say_it_the_likeliest_first(text, ways):
    assert spoken_forms(text) == ways


def test_a_dash_in_a_name_is_not_said():
    assert "dæʃ" not in "".join(sounds_of("Qwen3-32B"))
    assert "slæʃ" not in "".join(sounds_of("µg/mL"))
    assert sounds_of("5 mg") == sounds_of("five milligrams")
    assert sounds_of("IL-6") >= {"aɪɛlsɪks", "ɪlsɪks"}


@pytest.mark.parametrize("term", ["CRAN", "Snyk", "Redis", "PPM", "RFD", "Phi-4-mini", "C++", "sepsis", "folder 7"])
def test_terms_that_were_said_well_are_said_as_before(term):
    alone = get_phonemizer("espeak:en-us").phonemes([term.replace("-", " ")])[0]
    assert "".join(alone) in sounds_of(term)


@pytest.mark.parametrize(
    ("text", "language", "said"),
    [
        ("5 mg", "fr", "5 milligrammes"),
        ("5 %", "fr", "5 pour cent"),
        ("5 km", "de", "5 Kilometer"),
        ("5 mg", "xx", None),
    ],
)
def test_amounts_are_said_in_the_language_of_the_term(text, language, said):
    assert spoken_forms(text, language) == (said or text,)


def test_every_unit_has_a_name():
    assert [symbol for symbol in SYMBOLS if say_amount("5", symbol, None) is None] == []


def test_what_is_written_out_is_not_written_out_again_and_survives_a_process():
    second = spoken_forms("IL-6")[1]
    assert spoken_forms(second) == (second,)
    thawed = pickle.loads(pickle.dumps(second))
    assert (type(thawed), thawed, as_written(thawed)) == (AsSaid, "IL 6", "IL-6")
    assert spoken_forms("IL 6") != (second,)  # the same letters, as somebody wrote them


def test_letters_of_another_script_are_known_by_the_language():
    assert foreign_letters("東京 tower", "en") == "東京"
    assert foreign_letters("Привет", "ru") == foreign_letters("β-blocker", "en") == foreign_letters("Łódź", "en") == ""
    assert foreign_letters("ひらがな 東京", "ja") == "東京"


def test_terms_that_cannot_be_read_are_left_out_with_count_examples_and_remedy(caplog):
    terms = ["sepsis", "東京", "你好", {"term": "大阪", "pronunciations": ["oh sah kah"]}, "Paris 東京"]
    with caplog.at_level(logging.WARNING):
        kept = speakable(Glossary(terms, source="g.txt"), ESPEAK)
    assert kept.texts == ["sepsis", "大阪", "Paris 東京"]
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("g.txt: 3 of 5 terms are written in Chinese characters")
    for part in ("'東京', '你好', 'Paris 東京'", "2 are left out", "of 1 a part is said", "Give them a pronunciation"):
        assert part in message
    assert sounds_of("Paris 東京") == sounds_of("Paris")


def test_a_glossary_of_which_nothing_can_be_said_is_refused():
    with pytest.raises(
        ValueError, match=r"g: 2 of 2 terms .* such as '東京', '你好': nothing can be said of any\. Give"
    ):
        speakable(Glossary(["東京", "你好"], source="g"), ESPEAK)


def test_a_pronunciation_in_the_symbols_of_the_model_is_taken_as_it_is():
    (term,) = Glossary([{"term": "Nguyen", "pronunciations": ["/ˈw ɪ n/", "[nuˈgjɛn]", "win"]}])
    ways = ESPEAK.pronunciations(list(term.sayings))
    assert ways[0] == [["w", "ɪ", "n"]]
    assert ways[1] == [["n", "u", "ɡ", "j", "ɛ", "n"]]
    assert ways[2] == ESPEAK.pronunciations(["win"])[0]


def test_double_brackets_in_a_transcript_are_no_sounds():
    assert ESPEAK.pronunciations(["[[inaudible]]"]) == ESPEAK.pronunciations(["inaudible"])


def test_a_sound_that_the_model_does_not_have_is_named():
    with pytest.raises(ValueError, match=r"the pronunciation /w 9 n/ holds '9', which the model has no sound for"):
        ESPEAK.pronunciations([AsSaid("[[w 9 n]]")])
