"""Text towers: a term's vector depends on the term alone, and a saved tower knows its phonemizer."""

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BartConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from qwen_term_retrieval.models import TermRetrievalModel
from qwen_term_retrieval.models.configuration import TermRetrievalConfig
from qwen_term_retrieval.models.lora import TEXT_TARGETS, inject_lora
from qwen_term_retrieval.models.text_towers.phoneme_encoder import PhonemeEncoder
from qwen_term_retrieval.models.text_towers.text_encoder import HFTextEncoder
from qwen_term_retrieval.models.text_towers.tower import build_text_tower
from qwen_term_retrieval.models.weights.checkpoints import resolve_checkpoint
from qwen_term_retrieval.text.phonetics import PhonemizerError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
LETTERS = "abcdefgh"
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
        (MINILM, {"pooling": "max"}, "pooling must be one of auto, cls, mean, last, pyramid, not 'max'"),
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


# Poolings -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A small Qwen3, such as Qwen3-Embedding is a large one, with a tokenizer of a few words."""
    folder = tmp_path_factory.mktemp("qwen3")
    words = ["[PAD]", "[UNK]", *["atrial", "fibrillation", "chronic", "pulmonary", "disease", "sepsis"]]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
    )
    Qwen3Model(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", padding_side="left"
    ).save_pretrained(folder)
    return folder


def loaded(folder, **settings):
    tower = HFTextEncoder(str(folder), settings)
    tower.encoder.load_state_dict(tower.base_tensors())
    return tower.double().eval()


WORDS = ["chronic pulmonary disease", "sepsis", "atrial fibrillation"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_each_pooling_of_a_decoder_is_what_its_name_says_on_either_padding_side(decoder, pooling, side):
    tower, stock = loaded(decoder, pooling=pooling), AutoModel.from_pretrained(decoder).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    inputs = tokenizer(WORDS, padding=True, padding_side=side, return_tensors="pt")
    assert inputs["attention_mask"].sum(1).tolist() == [3, 1, 2]
    with torch.no_grad():
        vectors = tower(inputs["input_ids"], inputs["attention_mask"])
        for term, vector in zip(WORDS, vectors, strict=True):
            hidden = stock(**tokenizer(term, return_tensors="pt")).last_hidden_state[0]
            expected = {"cls": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}[pooling]
            torch.testing.assert_close(vector, expected, atol=1e-9, rtol=0)


def test_absolute_positions_count_from_the_first_token_whatever_the_side(minilm):
    left = AutoTokenizer.from_pretrained(resolve_checkpoint(MINILM), padding_side="left")
    inputs = left(TERMS, padding=True, return_tensors="pt")
    assert inputs["attention_mask"][0, 0] == 0
    with torch.no_grad():
        vectors = minilm(inputs["input_ids"], inputs["attention_mask"])
    torch.testing.assert_close(vectors, embed(minilm, TERMS), atol=1e-9, rtol=0)


def test_pooling_is_chosen_by_what_the_checkpoint_says_and_else_by_its_class(decoder, tmp_path):
    assert HFTextEncoder(MINILM, {}).pooling == "mean"
    assert HFTextEncoder(str(decoder), {}).pooling == "last"
    folder = tmp_path / "said"
    shutil.copytree(decoder, folder)
    (folder / "1_Pooling").mkdir()
    for fields, pooling in [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "word_embedding_dimension": 16}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean", "embedding_dimension": 16}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ]:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(fields))
        tower = build_text_tower(str(folder), None)
        assert tower.pooling == pooling
        assert tower.settings()["pooling"] == pooling
    assert build_text_tower(str(folder), None, pooling="cls").pooling == "cls"
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ValueError, match=r"config\.json pools by pooling_mode_max_tokens; .* set text_pooling"):
        build_text_tower(str(folder), None)


def test_an_encoder_decoder_whose_encoder_does_not_stand_alone_is_no_text_tower(tmp_path):
    BartConfig(d_model=8, encoder_layers=1, decoder_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is an encoder-decoder \(bart\) whose encoder does not stand alone"):
        HFTextEncoder(str(tmp_path), {})


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A whole T5, and its encoder saved alone."""
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=40, d_model=16, d_ff=32, num_layers=2, num_heads=2, d_kv=8, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(["<pad>", "</s>", *LETTERS])}))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
    encoder = T5EncoderModel(config)
    encoder.load_state_dict(
        {name: values for name, values in model.state_dict().items() if name in encoder.state_dict()}
    )
    for name, part in (("whole", model), ("encoder", encoder)):
        part.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name", ["whole", "encoder"])
def test_of_a_t5_whole_or_not_the_encoder_alone_is_built_and_it_equals_the_stock_one(t5, name):
    tower = loaded(t5 / name)
    assert not hasattr(tower.encoder, "decoder")
    assert {*tower.encoder.state_dict()} == {*T5EncoderModel(tower.encoder.config).encoder.state_dict()}
    inputs = tower.tokenize(["abc", "fghabcd"])
    stock = T5ForConditionalGeneration.from_pretrained(t5 / "whole").double().eval()
    hidden_NLH = stock.encoder(**inputs).last_hidden_state
    mask_NL1 = inputs["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close(tower(**inputs), (hidden_NLH * mask_NL1).sum(1) / mask_NL1.sum(1), atol=1e-6, rtol=0)


def test_the_plain_class_builds_a_whole_model_of_an_encoder_and_cannot_run_it(t5):
    model = AutoModel.from_pretrained(t5 / "encoder")
    assert hasattr(model, "decoder")
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model(input_ids=torch.tensor([[3, 4]]))


def test_a_pyramid_over_tokens_knows_their_order_and_needs_no_batch_mates(t5):
    tower = loaded(t5 / "whole", pooling="pyramid").double()
    assert tower.hidden_size == 7 * 16
    together = embed(tower, ["abcd", "dcba", "a"])
    assert together.shape == (3, 7 * 16)
    torch.testing.assert_close(embed(tower, ["a"])[0], together[2], atol=1e-9, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_a_retriever_with_a_trained_t5_loads_to_the_same_vectors(t5, tmp_path):
    torch.manual_seed(0)
    sum_of_both = f"phonemes:characters + {t5 / 'whole'}"
    for name, trained in ((str(t5 / "whole"), True), (sum_of_both, False)):
        model = TermRetrievalModel(TermRetrievalConfig(audio_tower="openai/whisper-tiny.en", text_tower=name)).eval()
        if trained:
            model.train_text_tower()
            with torch.no_grad():
                model.text_tower.encoder.embed_tokens.weight.mul_(1.5)
        model.save_pretrained(tmp_path / str(trained))
        again = TermRetrievalModel.from_pretrained(tmp_path / str(trained)).eval()
        assert torch.equal(again.encode_terms(["abc", "hgf"]), model.encode_terms(["abc", "hgf"]))


def test_adapters_find_the_layers_of_encoders_and_decoders(decoder, minilm, t5):
    for tower in (loaded(decoder), HFTextEncoder(MINILM, {}), loaded(t5 / "whole")):
        inject_lora(tower.encoder, {"r": 1}, TEXT_TARGETS)
        adapted = {name.split(".lora_")[0] for name, _ in tower.encoder.named_parameters() if "lora_" in name}
        linear = {
            name
            for name, module in tower.encoder.named_modules()
            if isinstance(module, torch.nn.Linear) and "lora_" not in name
        }
        assert adapted == {name.removesuffix(".base_layer") for name in linear}


def test_two_poolings_that_disagree_are_refused(decoder):
    assert build_text_tower(str(decoder), {"pooling": "mean"}).pooling == "mean"
    with pytest.raises(ValueError, match="text_pooling is 'cls', but text_tower_config says 'mean'"):
        build_text_tower(str(decoder), {"pooling": "mean"}, pooling="cls")
    with pytest.raises(ValueError, match="text_pooling must be one of auto, cls, mean, last, pyramid, not 'max'"):
        TermRetrievalConfig(text_pooling="max")


def test_many_terms_share_what_their_sounds_have_in_common_and_get_the_vectors_of_each_alone(phoneme_encoder):
    texts = [
        f"{term} {word}" for term in TERMS for word in ("of", "the", "in", "a long way", "seven") for _ in range(12)
    ]
    texts += [f"{a}{b}tion" for a in LETTERS for b in LETTERS]
    with torch.no_grad():
        together = phoneme_encoder(**phoneme_encoder.tokenize(texts))
        alone = torch.cat([phoneme_encoder(**phoneme_encoder.tokenize([text])) for text in texts[::7]])
    assert len(texts) >= 256
    torch.testing.assert_close(together[::7], alone, rtol=0, atol=1e-12)
