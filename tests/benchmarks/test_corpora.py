"""What the near-human corpus says, and who says it; and the curve of what it is worth."""

import functools
import json
from collections import defaultdict

import pytest

from benchmarks.corpora import curve, near_human
from benchmarks.real_speech.judged_sets import is_test_text
from qwen_term_retrieval.storage.packages import PackageError
from qwen_term_retrieval.synthesis.laptop import HELD_OUT_VOICES
from qwen_term_retrieval.text import wordlists
from qwen_term_retrieval.text.spellings import normalize_term


@pytest.fixture(scope="module")
def near_human_rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_human, "_ALIKE_POOL", 2_400)
        for name in ("wordnet_terms", "wordnet_examples", "medical_terms", "computing_terms", "place_names"):
            patch.setattr(wordlists, name, functools.cache(getattr(wordlists, name)))
        yield near_human.near_human_rows


@pytest.fixture(scope="module")
def rows(near_human_rows):
    try:
        return near_human_rows(600)
    except PackageError as error:
        pytest.skip(f"the package registry cannot be reached: {error}")


def test_the_clips_of_a_small_corpus_are_the_first_of_a_large_one(near_human_rows, rows):
    assert near_human_rows(100) == rows[:100]


def test_no_text_of_a_test_set_is_said_alone_or_around_a_term(rows):
    for row in rows:
        said = row.request
        assert not any(map(is_test_text, (said.text, said.before, said.after, said.sentence)))


def test_half_is_said_by_mixtures_and_validation_by_voices_of_its_own(rows):
    assert 0.4 < sum(near_human.is_mixture(row.request.voice) for row in rows) / len(rows) < 0.6
    for row in rows:
        assert (row.request.voice in HELD_OUT_VOICES) == (row.split == "validation")


def test_a_third_stands_in_sentences_and_some_speech_holds_no_term(rows):
    assert 0.25 < sum(bool(row.request.before) for row in rows) / len(rows) < 0.42
    assert {row.is_term for row in rows if row.extra["kind"] == "no term"} == {False}
    assert 0.05 < sum(not row.is_term for row in rows) / len(rows) < 0.15


def test_terms_that_sound_alike_are_said_by_one_voice_at_one_speed(rows):
    alike = [row.request for row in rows if row.extra["kind"] == "alike"]
    by_voice = defaultdict(list)
    for one, other in zip(alike[::2], alike[1::2], strict=False):
        assert (one.voice, one.speed) == (other.voice, other.speed)
        assert one.text != other.text
        by_voice[one.voice].append(one.text)
    assert len(by_voice) > 5


def test_a_term_is_said_once(rows):
    terms = [normalize_term(row.request.text) for row in rows if row.is_term]
    assert len(terms) == len(set(terms))


def test_the_curve_is_the_mean_of_its_seeds(tmp_path):
    (tmp_path / "results").mkdir()
    for seed, ranks in enumerate(([1, 3, 40], [1, 1, 2])):
        found = {
            "clips": 2_500,
            "voices": curve.ALL,
            "seed": seed,
            "ranks": {test: {"+10k": ranks} for test in ("volunteers", "studio")},
            "phoneme_error_rate": {"volunteers": 0.4, "studio": 0.2 + 0.1 * seed},
        }
        (tmp_path / "results" / f"{seed}.json").write_text(json.dumps(found))
    table = curve.report(tmp_path / "results", tmp_path)
    assert "0.500 (0.33–0.67) / 0.833" in table
    assert "0.250" in table
    assert (tmp_path / "near_human_curve.png").stat().st_size > 10_000
    (point,) = json.loads((tmp_path / "near_human_curve.json").read_text())["points"]
    assert (point["clips"], point["volunteers"]["R@1"]) == (2_500, [0.3333, 0.6667])


def test_a_curve_without_a_result_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no result"):
        curve.report(tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())
