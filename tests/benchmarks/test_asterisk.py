import gzip

import numpy as np
import pytest

from benchmarks.real_speech import asterisk
from benchmarks.real_speech.asterisk import (
    asterisk_texts,
    decode_g722,
    read_prompts,
    read_transcripts,
    spoken_text,
    utterances,
)
from qwen_term_retrieval.storage.packages import PackageError
from qwen_term_retrieval.text.spellings import normalize_term


@pytest.fixture(scope="module")
def prompt_set() -> asterisk.PromptSet:
    try:
        return read_prompts()
    except PackageError as error:
        pytest.skip(f"the Asterisk packages cannot be had: {error}")


def test_prompts_are_the_recordings_in_which_something_is_said(prompt_set):
    assert {reason: len(keys) for reason, keys in prompt_set.left_out.items()} == {
        "without speech": 17,
        "longer than 30 s": 3,
    }
    assert len(prompt_set.prompts) == 548
    assert sum(prompt.num_words <= 4 for prompt in prompt_set.prompts) == 341
    assert "silence/3" in prompt_set.left_out["without speech"]
    assert "548 prompts, 1321 s; left out: 17 without speech" in prompt_set.summary()


def test_recordings_decode_to_the_length_that_the_file_promises(prompt_set):
    seven = next(prompt for prompt in prompt_set.prompts if prompt.key == "digits/7")
    pcm = seven.pcm()
    assert pcm.dtype == np.int16
    assert len(pcm) == round(seven.seconds * asterisk.SAMPLING_RATE)
    # Speech: loud somewhere, quiet at the edges.
    assert np.abs(pcm.astype(int)).max() > 10_000
    assert np.abs(pcm[:400].astype(int)).mean() < 200


def test_the_excluded_texts_hold_every_prompt_even_those_not_evaluated(prompt_set):
    texts = asterisk_texts()
    assert {normalize_term(prompt.text) for prompt in prompt_set.prompts} < texts
    assert any(text.startswith("congratulations you have successfully installed") for text in texts)
    assert "" not in texts


def test_another_spelling_of_a_prompt_is_a_prompt_too(prompt_set):
    for text in ("X-ray", "30th", "Folder Seven!", "oclock", "thirtieth"):
        assert asterisk.is_asterisk_text(text), text
    for text in ("folder eleven", "atrial fibrillation", "pres"):
        assert not asterisk.is_asterisk_text(text), text


def test_prompts_become_a_corpus_of_clips_that_are_their_own_term(prompt_set):
    (utterance,) = utterances([prompt for prompt in prompt_set.prompts if prompt.key == "vm-Cust3"])
    assert (utterance.key, utterance.text, utterance.terms) == ("vm-Cust3", "folder 7", ("folder 7",))


@pytest.mark.parametrize(
    ("transcript", "text"),
    [
        ("Activated.", "Activated"),
        ("A.M.", "A.M."),
        ("dash [-]", "dash"),
        ('IAX (note: does not say "2")', "IAX"),
        ("... for ...", "for"),
        ("(2 seconds of silence)", ""),
        ("<beep ascending>", ""),
        ("One moment, please.", "One moment, please"),
    ],
)
def test_remarks_and_final_points_are_no_part_of_what_is_said(transcript, text):
    assert spoken_text(transcript) == text


@pytest.mark.parametrize("line", ["no colon here", "first: again"])
def test_a_bad_transcript_line_is_named(tmp_path, line):
    path = tmp_path / "texts.gz"
    path.write_bytes(gzip.compress(f"; comment\n\nfirst: one\n{line}\n".encode()))
    with pytest.raises(ValueError, match=r"texts\.gz, line 4"):
        read_transcripts(path)


def test_g722_packs_two_samples_into_a_byte(tmp_path):
    path = tmp_path / "noise.g722"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 800, dtype=np.uint8).tobytes())
    assert decode_g722(path).shape == (1600,)
