"""LoRA that a search has folded into the weights: faster, and still the same model."""

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.retrieval.index import TermIndexError
from qwen_term_retrieval.retrieval.indexing.fingerprint import model_fingerprint
from qwen_term_retrieval.retrieval.retriever import TermRetriever

CLIPS = [(np.random.default_rng(seed).standard_normal(16_000 * seed) * 3000).astype(np.int16) for seed in (1, 2)]
TERMS = ["sepsis", "atrial fibrillation"]


@pytest.fixture
def model():
    """Real weights with adapters that were trained."""
    torch.manual_seed(0)
    config = TermRetrievalConfig(
        audio_tower="openai/whisper-tiny.en",
        embedding_dim=16,
        text_tower="phonemes:characters",
        text_tower_config={"hidden_size": 16},
        lora={"r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
    )
    model = TermRetrievalModel(config).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "lora_B" in name:
                values.normal_(std=0.05)
    return model


def folded_layers(model):
    return [layer.merged for layer in model.modules() if isinstance(layer, BaseTunerLayer)]


def test_a_retriever_folds_the_adapters_of_a_model_that_it_loads(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    searching = TermRetriever.from_pretrained(tmp_path / "model").model
    assert all(folded_layers(searching))
    vectors = model.encode_audio(CLIPS).vectors
    torch.testing.assert_close(searching.encode_audio(CLIPS).vectors, vectors, atol=1e-5, rtol=0)
    plain = TermRetrievalModel.from_pretrained(tmp_path / "model")
    assert not any(folded_layers(TermRetriever.from_pretrained(plain).model)), "a loaded model stays as it is"


def test_a_folded_model_is_saved_as_it_was(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    TermRetriever.from_pretrained(tmp_path / "model").model.save_pretrained(tmp_path / "again")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("model", "again")]
    assert weights[0] == weights[1]
    again = TermRetrievalModel.from_pretrained(tmp_path / "again")
    assert torch.equal(again.encode_audio(CLIPS).vectors, model.encode_audio(CLIPS).vectors)


def test_an_index_is_good_for_the_model_whether_folded_or_not(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    plain, folded = TermRetriever(model), TermRetriever.from_pretrained(tmp_path / "model")
    plain.index(TERMS)
    folded.load_index(plain.save_index(tmp_path / "index"))
    with torch.no_grad():
        next(values for name, values in model.named_parameters() if "lora_B" in name).mul_(2)
    with pytest.raises(TermIndexError, match="made with another model"):
        plain.load_index(tmp_path / "index")


def test_training_takes_the_adapters_out_of_the_weights_again(model):
    before = {name: values.clone() for name, values in model.state_dict().items()}
    model.fold_lora()
    model.train()
    assert not any(folded_layers(model))
    torch.testing.assert_close(model.state_dict(), before, atol=1e-6, rtol=0)
    pcm_BS, num_samples_B = pad_pcm(CLIPS)
    model(pcm_BS=pcm_BS, num_samples_B=num_samples_B).audio_PD.cumsum(1).square().sum().backward()
    gradients = [values.grad for name, values in model.named_parameters() if "lora_" in name]
    assert gradients
    assert all(gradient is not None for gradient in gradients)


def test_folded_adapters_are_merged_for_good_once(model):
    vectors = model.encode_audio(CLIPS).vectors
    model.fold_lora()
    model.merge_lora()
    torch.testing.assert_close(model.encode_audio(CLIPS).vectors, vectors, atol=1e-5, rtol=0)


def test_what_folding_would_change_is_not_folded(model):
    model.train_audio_tower()
    model.eval().fold_lora()
    assert not any(folded_layers(model)), "its weights are saved beside the adapters: they would be in there twice"


def test_a_tower_that_is_trained_after_folding_is_saved_without_its_adapters_in_it(model, tmp_path):
    vectors = model.encode_audio(CLIPS).vectors
    model.fold_lora()
    model.train_audio_tower()
    model.save_pretrained(tmp_path)
    loaded = TermRetrievalModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.encode_audio(CLIPS).vectors, vectors, atol=1e-5, rtol=0)


def test_adapters_that_come_to_a_model_in_evaluation_mode_drop_nothing(model):
    model.merge_lora()
    model.add_lora(r=2, dropout=0.5, target_modules={"q_proj", "v_proj"})
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "lora_B" in name:
                values.normal_(std=0.5)
    assert torch.equal(model.encode_audio(CLIPS).vectors, model.encode_audio(CLIPS).vectors)
    model_fingerprint(model)


def test_half_precision_is_not_folded(model):
    model.half().fold_lora()
    assert not any(folded_layers(model))


def test_a_fingerprint_is_of_the_base_tower_and_the_scale_of_lora_too(model):
    known = model_fingerprint(model)
    model.config.audio_tower_sha256 = "0" * 64
    other_tower = model_fingerprint(model)
    model.config.lora["lora_alpha"] = 16
    assert len({known, other_tower, model_fingerprint(model)}) == 3
