"""Terms by sound, by meaning or by both; said in several ways and in several languages."""

import pytest
import torch

from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.models.text_towers.phoneme_encoder import PhonemeEncoder
from qwen_term_retrieval.models.text_towers.sound_and_meaning import SoundAndMeaning
from qwen_term_retrieval.models.text_towers.tower import build_text_tower
from qwen_term_retrieval.text.phonetics import PhonemizerError
from qwen_term_retrieval.text.pronouncing import Pronouncer

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
BOTH = f"phonemes:characters + {MINILM}"
TERMS = ["sepsis", "atrial fibrillation", "data", "folder 7"]
WHISPER = {"model_type": "whisper", "num_mel_bins": 16, "d_model": 8, "encoder_layers": 1}
WHISPER |= {"encoder_attention_heads": 2, "encoder_ffn_dim": 16}


def config(text_tower=BOTH, **fields):
    sound = {"sound": {"hidden_size": 16}, "hidden_size": 32} if " + " in text_tower else None
    fields = {"text_tower_config": sound} | fields
    return TermRetrievalConfig(audio_tower=WHISPER, text_tower=text_tower, embedding_dim=16, **fields)


def embed(tower, texts, *languages):
    with torch.no_grad():
        return tower(**tower.tokenize(texts, *languages))


# The sum ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TermRetrievalModel(config()).eval()


def test_a_sum_hears_and_reads_and_leans_to_sound_at_first(model):
    tower = model.text_tower
    assert isinstance(tower, SoundAndMeaning)
    with torch.no_grad():
        tower.gate.weight.zero_()
    inputs = tower.tokenize(TERMS)
    assert set(inputs) == {
        f"{side}_{name}" for side in ("sound", "meaning") for name in ("input_ids", "attention_mask")
    }
    with torch.no_grad():
        sides = [tower._side(name, inputs) for name in ("sound", "meaning")]
        torch.testing.assert_close(tower(**inputs), torch.lerp(sides[1], sides[0], 0.8808), atol=1e-4, rtol=0)


def test_every_part_of_a_sum_but_the_frozen_encoder_is_trained(model):
    tower = model.text_tower
    model.zero_grad()
    model.embed_texts(**model.tokenize(TERMS)).cumsum(1).square().sum().backward()
    without = {name for name, values in tower.named_parameters() if values.grad is None}
    assert without == {f"meaning.encoder.{name}" for name, _ in tower.meaning.encoder.named_parameters()}
    assert tower.gate_bias.grad.abs() > 0


def test_a_saved_sum_holds_no_base_weights_and_comes_back_bit_for_bit(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 1_000_000
    loaded = TermRetrievalModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode_terms(TERMS), model.encode_terms(TERMS))
    assert loaded.config.text_tower_sha256 == model.config.text_tower_sha256 is not None


@pytest.mark.parametrize(
    ("name", "settings", "complaint"),
    [
        ("phonemes:characters + phonemes:cmudict", {}, "a sum is one phoneme encoder and one pretrained encoder"),
        (f"{MINILM} + {MINILM}", {}, "a sum is one phoneme encoder and one pretrained encoder"),
        (BOTH, {"gate": 1}, r"unknown keys \['gate'\]; a sum takes 'sound', 'meaning' and 'hidden_size'"),
    ],
)
def test_a_sum_that_makes_no_sense_is_refused(name, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        build_text_tower(name, settings)


def test_the_order_of_the_parts_does_not_matter():
    swapped = build_text_tower(f"{MINILM} + phonemes:characters", {"sound": {"hidden_size": 16}})
    assert isinstance(swapped.sound, PhonemeEncoder)
    assert swapped.meaning.checkpoint == MINILM


# Cached texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text_tower", [MINILM, BOTH])
def test_cached_texts_embed_as_before_and_without_the_encoder(text_tower):
    model = TermRetrievalModel(config(text_tower)).eval()
    expected = model.encode_terms(TERMS)
    model.cache_texts(TERMS)
    calls = []
    model._text_encoder.encoder.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(model.encode_terms(TERMS), expected, atol=1e-6, rtol=0)
    assert calls == []
    torch.testing.assert_close(model.encode_terms(["gout", *TERMS])[1:], expected, atol=1e-6, rtol=0)
    assert calls == [1]


@pytest.mark.parametrize("change", [lambda model: model.train_text_tower(), lambda model: model.add_lora(tower="text")])
def test_a_text_tower_that_is_going_to_change_forgets_what_was_cached(change):
    model = TermRetrievalModel(config(MINILM))
    model.cache_texts(TERMS)
    change(model)
    assert "input_ids" in model.tokenize(TERMS)
    with pytest.raises(ValueError, match="the text encoder is being trained"):
        model.cache_texts(TERMS)


def test_a_phoneme_encoder_is_trained_and_has_nothing_to_cache():
    with pytest.raises(ValueError, match="'phonemes:characters' has no pretrained encoder"):
        TermRetrievalModel(config("phonemes:characters")).cache_texts(TERMS)


# Several pronunciations ---------------------------------------------------------------------------------------------


def heteronyms(phonemizer="cmudict", **settings):
    torch.manual_seed(0)
    return PhonemeEncoder({"phonemizer": phonemizer, "heteronyms": "mean", "hidden_size": 16} | settings).eval()


def test_a_term_that_is_said_in_several_ways_is_the_mean_of_them():
    encoder = heteronyms()
    ways = encoder.pronouncer.pronunciations(["data"])[0]
    assert [" ".join(way) for way in ways] == ["D EY T AH", "D AE T AH"]
    inputs = encoder.tokenize(["data", "sepsis", "read data"])
    assert inputs["input_ids"].shape[:2] == (3, 4)
    with torch.no_grad():
        together = encoder(**inputs)
        rows = [[encoder.config.symbols.index(symbol) + 2 for symbol in way] for way in ways]
        alone = encoder(torch.tensor(rows), torch.ones(2, 4, dtype=torch.int64))
    torch.testing.assert_close(together[0], alone.mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(embed(encoder, ["sepsis"])[0], together[1], atol=1e-6, rtol=0)


def test_a_term_with_one_pronunciation_is_what_it_is_without_heteronyms():
    encoder = heteronyms()
    first = PhonemeEncoder({"phonemizer": "cmudict", "hidden_size": 16}).eval()
    first.load_state_dict(encoder.state_dict())
    both = embed(encoder, ["sepsis", "data"]), embed(first, ["sepsis", "data"])
    torch.testing.assert_close(both[0][0], both[1][0], atol=1e-6, rtol=0)
    assert (both[0][1] - both[1][1]).abs().max() > 1e-3
    assert not {"languages", "heteronyms"} & set(first.settings())
    assert encoder.settings()["heteronyms"] == "mean"


def test_gradients_reach_every_pronunciation_and_no_padding():
    encoder = heteronyms()
    encoder(**encoder.tokenize(["data", "sepsis"])).cumsum(1).square().sum().backward()
    gradient = encoder.embedding.weight.grad
    assert all(gradient[encoder.config.symbols.index(symbol) + 2].abs().sum() > 0 for symbol in ("EY", "AE"))
    assert (gradient[0] == 0).all()


def test_two_accents_are_two_pronunciations():
    pronouncer = Pronouncer("espeak:en-us|espeak:en-gb-x-rp", several=True)
    tomato, pin = pronouncer.pronunciations(["tomato", "pin"])
    assert len(tomato) == 2
    assert len(pin) == 1
    with pytest.raises(ValueError, match='several pronunciations a term: set heteronyms="mean"'):
        Pronouncer("espeak:en-us|espeak:en-gb-x-rp")


# Several languages --------------------------------------------------------------------------------------------------

LANGUAGES = {"fr": "espeak:fr", "de": "espeak:de"}


def test_each_term_is_said_in_its_own_language():
    encoder = PhonemeEncoder({"phonemizer": "espeak:en-us", "languages": LANGUAGES, "hidden_size": 16}).eval()
    french = PhonemeEncoder({"phonemizer": "espeak:fr", "hidden_size": 16}).eval()
    french.load_state_dict(encoder.state_dict())
    mixed = embed(encoder, ["restaurant", "restaurant", "sepsis", "restaurant"], ["fr", None, "de", "fr-CA"])
    torch.testing.assert_close(mixed[0], embed(french, ["restaurant"])[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(mixed[1], embed(encoder, ["restaurant"])[0], atol=1e-6, rtol=0)
    assert torch.allclose(mixed[0], mixed[3], atol=1e-6)
    assert (mixed[0] - mixed[1]).abs().max() > 1e-2


def test_a_language_that_nobody_speaks_is_named():
    encoder = PhonemeEncoder({"phonemizer": "characters", "languages": LANGUAGES})
    with pytest.raises(ValueError, match=r"'sushi': no phonemizer for 'ja': .* name \['de', 'fr'\].*\"espeak:ja\""):
        encoder.tokenize(["chat", "sushi"], ["fr", "ja"])


def test_a_saved_model_knows_its_languages_and_refuses_others(tmp_path):
    settings = {"languages": LANGUAGES, "hidden_size": 16}
    model = TermRetrievalModel(config("phonemes:espeak:en-us", text_tower_config=settings)).eval()
    vectors = model.encode_terms(["restaurant", "data"], languages=["fr", None])
    model.save_pretrained(tmp_path)
    loaded = TermRetrievalModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode_terms(["restaurant", "data"], languages=["fr", None]), vectors)
    changed = model.text_tower.settings() | {"languages": {"fr": "espeak:fr-be", "de": "espeak:it"}}
    with pytest.raises(PhonemizerError, match="pronounces the probe words differently"):
        PhonemeEncoder(changed)


@pytest.mark.parametrize("language", ["en", "en-US", "EN_gb", None])
def test_the_language_of_the_default_needs_no_phonemizer_of_its_own(language):
    pronouncer = Pronouncer("espeak:en-us", LANGUAGES)
    assert pronouncer.pronunciations(["restaurant"], [language]) == pronouncer.pronunciations(["restaurant"])


def test_a_region_is_said_by_its_own_phonemizer_where_it_has_one():
    pronouncer = Pronouncer("espeak:en-us", {"en_GB": "espeak:en-gb-x-rp", "pt": "espeak:pt"})
    british, american, brazilian = pronouncer.pronunciations(["tomato"] * 3, ["en-GB", "en-AU", "pt-BR"])
    assert british == Pronouncer("espeak:en-gb-x-rp").pronunciations(["tomato"])[0] != american
    assert brazilian == Pronouncer("espeak:pt").pronunciations(["tomato"])[0]


@pytest.mark.parametrize("text_tower", [MINILM, "phonemes:espeak:en-us"])
def test_a_tower_that_reads_all_languages_alike_ignores_them(text_tower):
    model = TermRetrievalModel(config(text_tower)).eval()
    assert torch.equal(model.encode_terms(["sepsis"], languages=["ja"]), model.encode_terms(["sepsis"]))


# Adapters -----------------------------------------------------------------------------------------------------------


def adapted():
    torch.manual_seed(0)
    model = TermRetrievalModel(config())
    model.add_lora(r=2, dropout=0.0, tower="text")
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "lora_B" in name:
                values.normal_(std=0.1)
    return model


def test_the_reading_part_of_a_sum_is_adapted_saved_and_merged(tmp_path):
    model = adapted()
    vectors = model.encode_terms(TERMS)
    model.save_pretrained(tmp_path)
    loaded = TermRetrievalModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode_terms(TERMS), vectors)
    loaded.merge_lora()
    torch.testing.assert_close(loaded.encode_terms(TERMS), vectors, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="'phonemes:characters' has no pretrained encoder to adapt"):
        TermRetrievalModel(config("phonemes:characters")).add_lora(tower="text")


def test_checkpointing_changes_no_gradient_of_a_text_towers_adapters():
    model = adapted().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
            model.enable_input_require_grads()
        model.zero_grad()
        model.embed_texts(**model.tokenize(TERMS)).cumsum(1).square().sum().backward()
        gradients.append({name: values.grad for name, values in model.named_parameters() if "lora_" in name})
    assert len(gradients[0]) == 6 * 6 * 2
    for name, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)
