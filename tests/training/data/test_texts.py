"""Texts of a frozen text encoder are encoded once, and training takes the steps that it takes without the cache."""

import datasets
import pytest
import torch

import qwen_term_retrieval  # noqa: F401  registers the feature and the builder
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.training import trainer as trainer_module
from qwen_term_retrieval.training.arguments import TermRetrievalArguments
from qwen_term_retrieval.training.trainer import TermRetrievalTrainer

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
BOTH = f"phonemes:espeak:en-us + {MINILM}"
WHISPER = {"model_type": "whisper", "num_mel_bins": 16, "d_model": 16, "encoder_layers": 1, "dropout": 0.0}
WHISPER |= {"encoder_attention_heads": 2, "encoder_ffn_dim": 32}


@pytest.fixture(scope="module")
def rows(demo_rows):
    train = demo_rows["train"].sort("kind").select(range(0, 1590, 80))
    return datasets.DatasetDict(train=train, validation=demo_rows["validation"].select(range(12)))


def train(rows, output_dir, text_tower, text_lora_r=0, **settings):
    """A short run: the trainer, and how many texts its encoder read in training and in evaluation."""
    torch.manual_seed(0)
    sound = {"sound": {"hidden_size": 16, "dropout": 0.0}, "hidden_size": 32} if text_tower == BOTH else None
    config = {"text_tower": text_tower, "text_tower_config": sound, "embedding_dim": 16}
    model = TermRetrievalModel(TermRetrievalConfig(audio_tower=WHISPER, **config))
    if text_lora_r:
        model.add_lora(r=text_lora_r, dropout=0.0, tower="text")
    args = TermRetrievalArguments(
        output_dir=str(output_dir), use_cpu=True, per_device_train_batch_size=16, learning_rate=1e-2,
        optim="sgd", max_grad_norm=0.0, eval_strategy="no", save_strategy="no", bank_negatives=2, disable_tqdm=True,
        **{"max_steps": 2, **settings},
    )  # fmt: skip
    trainer = TermRetrievalTrainer(model, args, rows["train"], rows["validation"])
    read = []
    encoder = model._text_encoder.encoder
    encoder.register_forward_hook(lambda module, inputs, kwargs, output: read.append(output), with_kwargs=True)
    trainer.train()
    trainer.read_in_training = sum(len(output.last_hidden_state) for output in read)
    read.clear()
    trainer.metrics = trainer.evaluate()
    trainer.read_in_evaluation = sum(len(output.last_hidden_state) for output in read)
    return trainer


@pytest.mark.parametrize(
    ("text_tower", "settings"), [(MINILM, {}), (BOTH, {}), (BOTH, {"gradcache_chunk": 8, "enable_hard_neg": True})]
)
def test_the_cache_changes_no_number(rows, tmp_path, monkeypatch, text_tower, settings):
    cached = train(rows, tmp_path / "cached", text_tower, **settings)
    monkeypatch.setattr(trainer_module, "cache_frozen_texts", lambda *_, **__: None)
    plain = train(rows, tmp_path / "plain", text_tower, **settings)
    assert plain.model._text_encoder.cache is None
    weights = plain.model.state_dict()
    for name, values in cached.model.state_dict().items():
        torch.testing.assert_close(values, weights[name], atol=1e-6, rtol=0)
    assert cached.metrics["eval_mrr"] == pytest.approx(plain.metrics["eval_mrr"], abs=1e-6)
    # Every distinct text once, whatever the number of steps; and none in the evaluation.
    texts = {*rows["train"]["text"][:], *cached.glossary.texts}
    texts |= {text for split in rows for terms in rows[split]["terms"] for text in terms}
    texts |= set(rows["validation"]["text"][:])
    assert cached.read_in_training == len(texts) < plain.read_in_training
    assert cached.read_in_evaluation == 0 < plain.read_in_evaluation


def test_an_encoder_that_is_trained_is_never_cached(rows, tmp_path):
    trainer = train(rows, tmp_path, MINILM, text_lora_r=2, max_steps=1)
    assert trainer.model._text_encoder.cache is None
    assert trainer.read_in_evaluation > 0


def test_a_frozen_encoder_has_no_dropout_and_one_that_is_trained_has():
    model = TermRetrievalModel(TermRetrievalConfig(audio_tower=WHISPER, text_tower=BOTH, embedding_dim=16)).train()
    assert model.text_tower.sound.training
    assert not model._text_encoder.encoder.training
    model.add_lora(r=2, tower="text")
    assert model.train()._text_encoder.encoder.training
