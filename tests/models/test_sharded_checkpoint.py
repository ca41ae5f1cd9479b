"""Of a sharded Qwen2-Audio checkpoint each tower fetches and loads its own tensors, and nothing else.

The checkpoint is one of the real class, small, saved by transformers in shards, and served by a hub on this machine.
"""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    Trainer,
    TrainingArguments,
)

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.models.weights.checkpoints import load_tensors
from tests.doubles.local_hub import LocalHub

WORDS = ("[PAD]", "[UNK]", "sepsis", "atrial", "fibrillation", "gout")


@pytest.fixture(scope="module")
def qwen2_audio(tmp_path_factory):
    """The folder of a Qwen2-Audio of 60 kB in shards of 8 kB."""
    folder = tmp_path_factory.mktemp("qwen2-audio")
    audio = Qwen2AudioEncoderConfig(
        num_mel_bins=16, d_model=8, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=16
    )
    text = Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(Qwen2AudioConfig(audio_config=audio, text_config=text))
    model.save_pretrained(folder, max_shard_size="8KB")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder


def shards_of(folder, beginning):
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return {file for name, file in weight_map.items() if name.startswith(beginning)}


def test_a_tower_fetches_only_the_files_that_hold_its_tensors(qwen2_audio, tmp_path):
    """In a process of its own, because the Hub's address is read on import."""
    script = textwrap.dedent("""
        from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
        config = TermRetrievalConfig(audio_tower="someone/heard", text_tower="someone/read")
        TermRetrievalModel(config).encode_terms(["gout"])
    """)
    content = {path.name: path.read_bytes() for path in qwen2_audio.iterdir()}
    with LocalHub() as hub:
        hub.repositories |= {"someone/heard": content, "someone/read": content}
        subprocess.run([sys.executable, "-c", script], env=hub.environment(tmp_path), check=True)
        requested = [path for _, path in hub.requests if path.endswith(".safetensors")]
    every = {path.name for path in qwen2_audio.glob("*.safetensors")}
    for repository, part in (("someone/heard", "audio_tower."), ("someone/read", "language_model.model.")):
        fetched = {path.rpartition("/")[2] for path in requested if path.startswith(f"/{repository}/")}
        assert fetched == shards_of(qwen2_audio, part)
        assert 0 < len(fetched) < len(every)


def test_the_audio_tower_out_of_the_shards_is_the_stock_one(qwen2_audio):
    stock = Qwen2AudioForConditionalGeneration.from_pretrained(qwen2_audio).model.audio_tower.state_dict()
    model = TermRetrievalModel(TermRetrievalConfig(audio_tower=str(qwen2_audio), text_tower="phonemes:characters"))
    own = model.audio_tower.encoder.state_dict()
    assert set(own) == set(stock)
    assert all(torch.equal(own[name], stock[name]) for name in own)


def test_tensors_of_other_parts_in_the_same_file_are_not_loaded(qwen2_audio):
    every = load_tensors(qwen2_audio, ("",))
    own = load_tensors(qwen2_audio, ("audio_tower.",))
    assert len(own) == sum(name.startswith("audio_tower.") for name in every) < len(every)


@pytest.fixture
def both_towers(qwen2_audio):
    """The original system: Qwen2-Audio's encoder and its language model, both from one checkpoint."""
    config = TermRetrievalConfig(audio_tower=str(qwen2_audio), text_tower=str(qwen2_audio), embedding_dim=16)
    return TermRetrievalModel(config)


def test_the_language_model_reads_terms_at_their_last_token(both_towers, qwen2_audio):
    stock = Qwen2AudioForConditionalGeneration.from_pretrained(qwen2_audio).model.language_model.eval()
    inputs = both_towers.tokenize(["atrial fibrillation", "gout"])
    assert inputs["input_ids"].tolist() == [[3, 4], [5, 0]]
    with torch.no_grad():
        pooled = both_towers.eval().text_tower(**inputs)
        for row, tokens in enumerate([[3, 4], [5]]):
            expected = stock(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1]
            torch.testing.assert_close(pooled[row], expected, atol=1e-6, rtol=0)


def test_adapters_go_into_both_towers_and_nowhere_else(both_towers, tmp_path):
    both_towers.add_lora(r=2, dropout=0.0)
    both_towers.add_lora(r=2, dropout=0.0, tower="text")
    trained = {name for name, values in both_towers.named_parameters() if values.requires_grad}
    in_towers = {name for name in trained if "tower" in name}
    assert all("lora_" in name for name in in_towers)
    assert {".".join(name.split(".")[:4]) for name in in_towers} == {
        f"{tower}_tower.encoder.layers.{layer}" for tower in ("audio", "text") for layer in (0, 1)
    }
    with pytest.raises(ValueError, match="the text tower has LoRA adapters already"):
        both_towers.add_lora(tower="text")
    with torch.no_grad():
        for name, values in both_towers.named_parameters():
            if "lora_B" in name:
                values.normal_()
    terms = ["atrial fibrillation", "gout"]
    vectors = both_towers.encode_terms(terms)
    both_towers.save_pretrained(tmp_path / "lora")
    loaded = TermRetrievalModel.from_pretrained(tmp_path / "lora")
    assert torch.equal(loaded.encode_terms(terms), vectors)
    assert {name for name, values in loaded.named_parameters() if values.requires_grad} == trained
    loaded.merge_lora()
    torch.testing.assert_close(loaded.encode_terms(terms), vectors, atol=1e-5, rtol=0)
    loaded.save_pretrained(tmp_path / "merged")
    merged = TermRetrievalModel.from_pretrained(tmp_path / "merged")
    assert torch.equal(merged.encode_terms(terms), loaded.encode_terms(terms))
    with pytest.raises(ValueError, match="no LoRA adapters to merge"):
        merged.merge_lora()


def test_a_checkpoint_holds_the_adapters_and_heads_and_not_a_byte_of_the_towers(both_towers, tmp_path):
    both_towers.add_lora(r=2)
    both_towers.add_lora(r=2, tower="text")
    both_towers.save_pretrained(tmp_path)
    own = sum(4 * values.numel() for values in both_towers.parameters() if values.requires_grad)
    written = (tmp_path / "model.safetensors").stat().st_size
    assert own <= written < own + 200 * len(list(both_towers.parameters()))
    assert not any("tower" in name and "lora_" not in name for name in load_tensors(tmp_path, ("",)))


class Objective(Trainer):
    """Clip and term of a row apart from those of others."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = model(**inputs, text_inputs=model.tokenize(["gout", "atrial fibrillation"]))
        return (output.logit_scale * output.audio_PD @ output.text_ND.T).square().mean()


def train(model, folder, resume=False):
    noise = (np.random.default_rng(0).standard_normal((6, 9_000)) * 3000).astype(np.int16)
    pcm, num_samples = pad_pcm(list(noise))
    rows = [{"pcm_BS": row, "num_samples_B": length} for row, length in zip(pcm, num_samples, strict=True)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=2,
        learning_rate=0.01,
        remove_unused_columns=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    Objective(model=model, args=arguments, train_dataset=rows).train(
        resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None
    )
    return {name: values.clone() for name, values in model.named_parameters()}


def test_a_run_with_adapters_in_both_towers_resumes_to_the_same_bits(qwen2_audio, tmp_path):
    def model():
        torch.manual_seed(0)
        lora = {"r": 2, "lora_dropout": 0.1}
        return TermRetrievalModel(
            TermRetrievalConfig(
                audio_tower=str(qwen2_audio), text_tower=str(qwen2_audio), embedding_dim=8, lora=lora, text_lora=lora
            )
        )

    before = {name: values.clone() for name, values in model().named_parameters()}
    whole = train(model(), tmp_path)
    resumed = train(model(), tmp_path, resume=True)
    assert {name for name in whole if not torch.equal(whole[name], before[name])} >= {
        name for name in whole if "lora_B" in name
    }
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "checkpoint-2" / "model.safetensors").stat().st_size < 40_000
