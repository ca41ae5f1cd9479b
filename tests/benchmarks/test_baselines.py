import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from benchmarks.real_speech.baselines import FuzzyMatcher, MeaningMatcher, PhoneticMatcher
from benchmarks.real_speech.spelling import spell_out
from benchmarks.real_speech.term_banks import HARD, distinct_terms, make_banks
from benchmarks.real_speech.whisper_transcripts import transcribe_all
from qwen_term_retrieval.text.phonetics import get_phonemizer

TERMS = ["seventy", "seventeen", "seventieth", "one moment please", "atrial fibrillation", "folder 7", "caret"]


def nearest(matcher, measure: str, transcript: str) -> str:
    return TERMS[int(matcher.scores([transcript], measure)[0].argmax())]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("30th.", "thirtieth"),
        ("Folder 7", "folder seven"),
        ("50%!", "fifty percent"),
        ("press # or *", "press pound or star"),
        ("the 21st", "the twenty first"),
    ],
)
def test_numbers_ordinals_and_signs_are_spelled_as_they_are_said(written, said):
    assert spell_out(written) == said


@pytest.mark.parametrize("measure", FuzzyMatcher.measures)
def test_every_edit_measure_finds_a_term_that_is_nearly_right(measure):
    matcher = FuzzyMatcher(TERMS)
    assert nearest(matcher, measure, "Atrial fibrilation.") == "atrial fibrillation"
    assert nearest(matcher, measure, "Folder seven!") == "folder 7"
    scores = matcher.scores(["70", ""], measure)
    assert scores.shape == (2, len(TERMS))
    assert scores.argmax(axis=1)[0] == 0
    assert scores.min() >= 0
    assert scores.max() <= 1.01


@pytest.mark.parametrize("measure", PhoneticMatcher.measures)
def test_every_phonetic_measure_hears_through_spelling(measure):
    matcher = PhoneticMatcher(TERMS, get_phonemizer("espeak:en-us"))
    assert nearest(matcher, measure, "carrot") == "caret"
    assert nearest(matcher, measure, "Won moment, pleas.") == "one moment please"


def test_spelling_breaks_the_ties_of_homophones():
    terms = ["four", "for", "fore"]
    matcher = PhoneticMatcher(terms, get_phonemizer("espeak:en-us"))
    alike = matcher.scores(["for"], "Levenshtein")[0]
    assert alike[0] == alike[1] == alike[2]
    for measure in PhoneticMatcher.spelling_weights:
        assert matcher.scores(["for"], measure)[0].argmax() == 1


@pytest.fixture
def sentence_encoder(tmp_path):
    words = {"[PAD]": 0, "[UNK]": 1} | {
        word: row for row, word in enumerate(["one", "moment", "please", "caret"], start=2)
    }
    tokenizer = Tokenizer(WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_sentence_embedding_does_not_depend_on_its_batch(sentence_encoder):
    matcher = MeaningMatcher(["one moment please", "caret"], sentence_encoder)
    together = matcher.embed(["caret", "one moment please", "moment"])
    apart = torch.cat([matcher.embed([text]) for text in ("caret", "one moment please", "moment")])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    assert matcher.scores(["Caret!"], "cosine")[0].argmax() == 1


class CountingTranscriber:
    """Writes how long a clip is, and counts how often it was asked."""

    def __init__(self, weights: str):
        self.weights, self.calls = weights, 0

    def weights_id(self) -> str:
        return self.weights

    def transcribe(self, pcm) -> str:
        self.calls += 1
        return f"{len(pcm)} samples"


def test_a_clip_is_transcribed_once_for_the_same_weights(tmp_path):
    clips = [np.zeros(length, np.int16) for length in (10, 20, 10)]
    cache = tmp_path / "new" / "transcripts.json"
    first = CountingTranscriber("a")
    assert transcribe_all(first, clips, cache) == ["10 samples", "20 samples", "10 samples"]
    again = CountingTranscriber("a")
    assert transcribe_all(again, clips[::-1], cache) == ["10 samples", "20 samples", "10 samples"]
    other = CountingTranscriber("b")
    transcribe_all(other, clips[:2], cache)
    assert (first.calls, again.calls, other.calls) == (2, 0, 2)
    assert len(json.loads(cache.read_text())) == 4


def test_distractors_never_are_another_spelling_of_a_prompt():
    others = ["X-ray", "30th", "Folder Seven", "x rays", "x rays", "O'Clock", "oclock"]
    assert distinct_terms(others, unlike=["xray", "thirtieth", "folder 7", "o'clock"]) == ["x rays"]


def test_banks_are_nested_and_begin_with_the_own_terms():
    texts = ["Activated", "seven", "activated", "Thank you"]
    others = [f"{letter}{letter}{number}" for letter in "abcdefghij" for number in range(30)] + [
        "deactivated",
        "sevens",
    ]
    banks = make_banks(texts, others, {"own": 0, "+20": 20, "+200": 200})
    assert [len(banks.rows[name]) for name in ("own", "+20", "+200", HARD)] == [3, 23, 203, 203]
    assert set(banks.rows["own"]) < set(banks.rows["+20"]) < set(banks.rows["+200"])
    assert {"deactivated", "sevens"} <= {banks.terms[row] for row in banks.rows[HARD]}
    assert len(set(banks.terms)) == len(banks.terms)
    for rows in banks.rows.values():
        assert rows[:3].tolist() == [0, 1, 2]
    assert [banks.terms[rows[0]] for rows in banks.gold_rows(texts)] == ["Activated", "seven", "Activated", "Thank you"]


def test_a_pool_too_small_for_the_bank_is_refused():
    with pytest.raises(ValueError, match="20 distractors wanted, but only 2"):
        make_banks(["one"], ["two", "three"], {"own": 0, "+20": 20})
