"""A decoder's second look: spellings as likely as the stock model has them, and homophones told apart."""

import json

import numpy as np
import pytest
import soxr
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GenerationConfig, WhisperConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from qwen_term_retrieval.models.weights.checkpoints import resolve_checkpoint
from qwen_term_retrieval.synthesis.engines import get_engine
from qwen_term_retrieval.verification.spelling import SpellingVerifier, spellings_of

CANDIDATES = ["the mail", "The male", "mail", "atrial fibrillation", "HTTP", "a hole in the ground"]
NOISE = np.random.default_rng(0).integers(-3000, 3000, 8000).astype(np.int16)


@pytest.fixture(scope="module")
def folder():
    return resolve_checkpoint("openai/whisper-base")


@pytest.fixture(scope="module")
def small(folder):
    """A Whisper of random weights that knows the real one's tokens."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 80}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **layers, init_std=0.5))
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return SpellingVerifier(model, AutoTokenizer.from_pretrained(folder))


def one_spelling(verifier, pcm, spelling):
    """Its log-probability in one run of the stock model over all of its tokens."""
    settings = verifier.model.generation_config
    prompt = [settings.decoder_start_token_id, settings.lang_to_id["<|en|>"], settings.task_to_id["transcribe"]]
    prompt.append(settings.no_timestamps_token_id)
    tokens = [*verifier.tokenizer.encode(spelling, add_special_tokens=False).ids, settings.eos_token_id]
    with torch.inference_mode():
        frames = BaseModelOutput(verifier.encode(pcm))
        logits = verifier.model(encoder_outputs=frames, decoder_input_ids=torch.tensor([prompt + tokens])).logits[0]
    log_probs = logits[len(prompt) - 1 : -1].double().log_softmax(dim=-1)
    return log_probs[torch.arange(len(tokens)), tokens].sum().item()


def all_spellings(verifier, pcm, text):
    return np.logaddexp.reduce([one_spelling(verifier, pcm, spelling) for spelling in spellings_of(text)])


def test_a_candidate_scores_what_the_stock_model_gives_all_its_spellings(small):
    scores = small.score(NOISE, CANDIDATES, width=1000)
    np.testing.assert_allclose(
        scores.log_probs_N, [all_spellings(small, NOISE, text) for text in CANDIDATES], rtol=1e-4
    )
    assert scores.followed_N.all()


def test_candidates_that_were_left_behind_stand_behind_those_that_were_followed(small):
    scores = small.score(NOISE, CANDIDATES, width=1)
    followed_N = scores.followed_N
    assert 0 < followed_N.sum() < len(CANDIDATES)
    assert scores.log_probs_N[~followed_N].max() <= scores.log_probs_N[followed_N].min()
    exact_N = np.array([all_spellings(small, NOISE, text) for text in CANDIDATES])
    assert (scores.log_probs_N <= exact_N + 1e-3)[followed_N].all(), "fewer spellings are followed, never more"


def test_no_candidates_have_no_scores(small):
    assert small.score(NOISE, []).log_probs_N.shape == (0,)


def test_a_term_is_spelled_as_it_is_lower_and_capitalised_with_and_without_a_stop():
    assert spellings_of("San  Jose") == [
        " San Jose",
        " San Jose.",
        " san jose",
        " san jose.",
        " San jose",
        " San jose.",
    ]
    assert spellings_of("ox") == [" ox", " ox.", " Ox", " Ox."]
    assert spellings_of("7") == [" 7", " 7."]


def test_a_tokenizer_that_lost_its_first_merge_gets_it_back(small):
    state = json.loads(small.tokenizer.to_str())
    assert state["model"]["merges"][0] == ["Ġ", "t"]
    del state["model"]["merges"][0]
    damaged = AutoTokenizer.from_pretrained(resolve_checkpoint("openai/whisper-base"))
    damaged._tokenizer = Tokenizer.from_str(json.dumps(state))
    assert len(damaged.tokenize(" the")) == 2
    again = SpellingVerifier(small.model, damaged)
    text = " to the twentieth train"
    assert again.tokenizer.encode(text).ids == small.tokenizer.encode(text).ids


@pytest.mark.parametrize(
    ("pcm", "texts", "width", "message"),
    [
        (NOISE.astype(np.float32), ["ox"], 8, r"expected int16 samples \(S,\), at least one, not float32"),
        (NOISE[:0], ["ox"], 8, "at least one"),
        (np.zeros(29 * 16_000 + 1, np.int16), ["ox"], 8, "a clip of 29.0 s; the decoder hears at most 29 s"),
        (NOISE, ["ox", " ?!"], 8, r"candidate '\?!' has no letter"),
        (NOISE, ["ox"], 0, "width must be at least 1"),
    ],
)
def test_what_cannot_be_heard_or_written_is_refused(small, pcm, texts, width, message):
    with pytest.raises(ValueError, match=message):
        small.score(pcm, texts, width=width)


def test_a_language_that_the_model_does_not_know_is_refused(small, folder):
    with pytest.raises(ValueError, match="does not know the language 'tlh'"):
        SpellingVerifier(small.model, AutoTokenizer.from_pretrained(folder), language="tlh")


@pytest.fixture(scope="module")
def whisper():
    return SpellingVerifier.from_pretrained("openai/whisper-base")


@pytest.mark.parametrize(
    ("said", "homophone"),
    [
        ("a hole in the ground", "a whole in the ground"),
        ("the whole world", "the hole world"),
        ("write a letter", "right a letter"),
        ("the right answer", "the write answer"),
    ],
)
def test_homophones_are_told_apart_by_what_stands_around_them(whisper, said, homophone):
    waveform, rate = get_engine("flite").say(said, "slt")
    pcm = (soxr.resample(waveform, rate, 16_000) * 32767).astype(np.int16)
    candidates = [homophone, said, *(f"folder {number}" for number in range(20)), "penicillin", "measure"]
    scores = whisper.score(pcm, candidates)
    assert np.argsort(-scores.log_probs_N)[:2].tolist() == [1, 0]
    assert scores.followed_N[:2].all()
