"""The volunteers' recordings: what is said in each, and what must never be trained on."""

import pytest

from benchmarks.real_speech.judged_sets import is_test_text
from benchmarks.real_speech.volunteers import LANGUAGES, ktuberling_utterances, tuxpaint_utterances
from qwen_term_retrieval.storage.packages import PackageError


@pytest.fixture(scope="module")
def words() -> dict[str, str]:
    try:
        return {utterance.key: utterance.text for utterance in ktuberling_utterances()}
    except PackageError as error:
        pytest.skip(f"the package cannot be had: {error}")


def test_a_word_is_the_files_name_without_its_theme(words):
    assert len(words) == len(set(words.values())) == 72
    assert words["ball"] == "ball"
    assert words["egypt_palmtree"] == "palm tree"
    assert words["moon_ufo"] == "UFO"


@pytest.mark.parametrize("text", ["Palm-tree", "umbrella", "ufo", "all circuits are busy now"])
def test_no_spelling_of_a_test_text_may_be_trained_on(words, text):
    assert is_test_text(text)
    assert not is_test_text(text + " of atrium")


def test_a_description_is_read_in_its_language_each_recording_and_each_text_once(tmp_path):
    (tmp_path / "hen.txt").write_text("A hen.\nfr.utf8=Une poule (femelle).\nda.utf8=En høne.\nlt.utf8=Višta\n")
    (tmp_path / "chick.txt").write_text("A chick.\nfr.utf8=Une poule\nda.utf8=En kylling!\n")
    (tmp_path / "long.txt").write_text("Long.\nfr.utf8=" + "un " * 13 + "\n")
    recordings = [
        "hen_desc_fr",
        "hen_desc_da",
        "hen_desc_lt",
        "hen_desc",
        "chick_desc_fr",
        "long_desc_fr",
        "egg_desc_fr",
    ]
    for number, name in enumerate(recordings):
        (tmp_path / f"{name}.ogg").write_bytes(bytes([number]))
    (tmp_path / "chick_desc_da.ogg").write_bytes(bytes([1]))  # the recording of the hen once more
    found = [(each.key, each.language, each.text) for each in tuxpaint_utterances(tmp_path)]
    assert ("fr/chick_desc_fr", "fr", "Une poule") in found
    assert [text for _, language, text in found if language == "da"] == ["En kylling"]
    assert len(found) == 2
    assert "en" not in LANGUAGES
