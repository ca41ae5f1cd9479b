"""Text towers: a term's vector depends on the term alone, and a saved tower knows its phonemizer."""

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from qwen_term_retrieval.models.checkpoints import resolve_checkpoint
from qwen_term_retrieval.models.phoneme_encoder import PhonemeEncoder
from qwen_term_retrieval.models.text_encoder import HFTextEncoder
from qwen_term_retrieval.models.text_tower import build_text_tower
from qwen_term_retrieval.text.phonetics import PhonemizerError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
TERMS = ["sepsis", "atrial fibrillation", "a", "chronic obstructive pulmonary disease", "folder 7"]


@pytest.fixture(scope="module")
def phoneme_encoder():
    torch.manual_seed(0)
    return PhonemeEncoder({"phonemizer": "espeak:en-us"}).double().eval()


@pytest.fixture(scope="module")
def minilm():
    tower = HFTextEncoder(MINILM, {})
    tower.encoder.load_state_dict(tower.base_tensors())
    return tower.double().eval()


def embed(tower, texts):
    with torch.no_grad():
        return tower(**tower.tokenize(texts))


@pytest.mark.parametrize("name", ["phoneme_encoder", "minilm"])
def test_a_terms_vector_does_not_depend_on_its_batch_mates(name, request):
    tower = request.getfixturevalue(name)
    together = embed(tower, TERMS)
    assert together.shape == (len(TERMS), tower.hidden_size)
    for term, vector in zip(TERMS, together, strict=True):
        torch.testing.assert_close(embed(tower, [term])[0], vector, atol=1e-9, rtol=0)


def test_homophones_share_a_vector_and_reversed_sounds_do_not(phoneme_encoder):
    same, other = embed(phoneme_encoder, ["folder 7", "folder seven"]), embed(phoneme_encoder, ["tip", "pit"])
    assert torch.equal(same[0], same[1])
    assert (other[0] - other[1]).abs().max() > 0.1


def test_padding_gets_no_gradient(phoneme_encoder):
    inputs = phoneme_encoder.tokenize(["a", "atrial fibrillation"])
    phoneme_encoder.zero_grad()
    phoneme_encoder(**inputs).sum().backward()
    assert (phoneme_encoder.embedding.weight.grad[0] == 0).all()
    unused = [name for name, values in phoneme_encoder.named_parameters() if values.grad is None]
    assert unused == []


def test_unknown_symbols_are_counted_not_dropped():
    encoder = PhonemeEncoder({"phonemizer": "characters"})
    inputs = encoder.tokenize(["né", "\u65e5\u672c", "…"])
    assert inputs["attention_mask"].sum(1).tolist() == [3, 2, 1]
    assert encoder.num_unknown == 3


def test_settings_rebuild_the_tower_and_another_phonemizer_is_refused(phoneme_encoder):
    settings = phoneme_encoder.settings()
    rebuilt = PhonemeEncoder(settings)
    assert rebuilt.settings() == settings
    assert rebuilt.embedding.weight.shape == phoneme_encoder.embedding.weight.shape
    with pytest.raises(PhonemizerError, match=r"pronounces the probe words differently .* pip install"):
        PhonemeEncoder(settings | {"phonemizer": "espeak:en-gb-scotland"})


@pytest.mark.parametrize(
    ("name", "settings", "complaint"),
    [
        ("phonemes:characters", {"width": 3}, "unexpected keyword argument 'width'; see PhonemeEncoderConfig"),
        (MINILM, {"pooling": "max"}, "pooling must be one of auto, cls, mean, last, not 'max'"),
        (MINILM, {"layers": 2}, r"unknown keys \['layers'\]"),
        ("phonemes:morse", {}, "no phonemizer 'morse'"),
    ],
)
def test_settings_that_make_no_tower_say_which(name, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        build_text_tower(name, settings)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_text_encoder_equals_the_stock_model_and_has_no_pooler(minilm, pooling):
    folder = resolve_checkpoint(MINILM)
    stock, tokenizer = AutoModel.from_pretrained(folder).double().eval(), AutoTokenizer.from_pretrained(folder)
    tower = HFTextEncoder(MINILM, {**minilm.settings(), "pooling": pooling}).double().eval()
    tower.encoder.load_state_dict(minilm.encoder.state_dict())
    for term, vector in zip(TERMS, embed(tower, TERMS), strict=True):
        with torch.no_grad():
            hidden = stock(**tokenizer(term, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(vector, hidden.mean(0) if pooling == "mean" else hidden[0], atol=1e-9, rtol=0)
    assert not [name for name, _ in tower.named_parameters() if "pooler" in name]


def test_a_text_of_500_words_is_cut_at_the_encoders_limit(minilm):
    assert minilm.tokenize(["word " * 1000])["input_ids"].shape == (1, 512)
