"""The whole model: one forward, what is saved and what is refused on load, and the entries that users call."""

import json
import logging
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from transformers import AutoModel, Trainer, TrainingArguments

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.models import CheckpointError, TermRetrievalConfig, TermRetrievalModel
from tests.doubles.local_hub import LocalHub

WINDOWS = {"sizes": (20, 40), "stride": 10}
TERMS = ["sepsis", "atrial fibrillation", "folder 7"]


def noise(seconds, seed=0):
    return (np.random.default_rng(seed).standard_normal(int(seconds * 16_000)) * 3000).astype(np.int16)


CLIPS = [noise(0.5), noise(1.7, 1), noise(3.0, 2)]


def whisper_config(**changes):
    """Real weights below, a tiny model above."""
    fields = {"audio_tower": "openai/whisper-tiny.en", "embedding_dim": 16, "text_tower": "phonemes:characters"}
    return TermRetrievalConfig(**fields | {"text_tower_config": {"hidden_size": 16}} | changes)


def tiny_config(**changes):
    """Random weights everywhere."""
    tower = {"num_mel_bins": 16, "d_model": 8, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    return whisper_config(**{"audio_tower": tower | {"model_type": "qwen2_audio_encoder"}} | changes)


def trained(config, seed=0):
    """A model whose own weights are no longer the initial ones."""
    torch.manual_seed(seed)
    model = TermRetrievalModel(config).eval()
    with torch.no_grad():
        for values in model.parameters():
            if values.requires_grad:
                values.add_(torch.randn_like(values) * 0.02)
    return model


def saved_names(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return set(weights.keys())


def assert_same(model, other):
    assert torch.equal(model.encode_audio(CLIPS).vectors, other.encode_audio(CLIPS).vectors)
    assert torch.equal(model.encode_terms(TERMS), other.encode_terms(TERMS))
    assert torch.equal(model.logit_scale, other.logit_scale)
    names = {name for name, values in model.named_parameters() if values.requires_grad}
    assert names == {name for name, values in other.named_parameters() if values.requires_grad}


# One forward --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"audio_layers": 2, "windows": WINDOWS}, {"lora": {"r": 2}}])
def test_one_forward_reaches_every_trainable_parameter(changes):
    model = TermRetrievalModel(tiny_config(**changes)).train()
    pcm, num_samples = pad_pcm(CLIPS)
    output = model(pcm_BS=pcm, num_samples_B=num_samples, text_inputs=model.tokenize(TERMS))
    logits = output.logit_scale * output.audio_PD @ output.text_ND.T
    logits.square().mean().backward()
    without = [name for name, values in model.named_parameters() if values.requires_grad and values.grad is None]
    assert without == []
    torch.testing.assert_close(output.audio_PD.norm(dim=-1), torch.ones(len(output.audio_PD)))
    torch.testing.assert_close(output.text_ND.norm(dim=-1), torch.ones(len(TERMS)))


def test_audio_and_its_features_give_the_same_spans():
    model = TermRetrievalModel(tiny_config()).eval()
    pcm, num_samples = pad_pcm(CLIPS)
    spans = {"clip_index_P": torch.tensor([2, 0, 2]), "start_P": torch.tensor([3.5, 0, 20])}
    spans["end_P"] = torch.tensor([14.25, 9, 60])
    with torch.no_grad():
        features, num_frames = model.audio_frames(pcm, num_samples)
        from_features = model(frames_BTH=features, num_frames_B=num_frames, **spans)
        from_audio = model(pcm_BS=pcm, num_samples_B=num_samples, **spans)
    assert from_audio.audio_PD.shape == (3, 16)
    assert torch.equal(from_audio.audio_PD, from_features.audio_PD)
    assert from_audio.text_ND is None


def test_forward_without_audio_says_what_it_needs():
    with pytest.raises(ValueError, match="needs pcm_BS and num_samples_B, or frames_BTH and num_frames_B"):
        TermRetrievalModel(tiny_config())(text_inputs=None)


# Saving and loading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        whisper_config(windows=WINDOWS),
        whisper_config(audio_layers=2, lora={"r": 4}),
        whisper_config(text_tower="sentence-transformers/all-MiniLM-L6-v2", text_tower_config=None),
        tiny_config(audio_layers=2, windows=WINDOWS),
    ],
    ids=["frozen whisper", "whisper with LoRA", "MiniLM", "random qwen2-audio"],
)
def test_a_saved_model_comes_back_bit_for_bit_and_without_a_word(config, tmp_path, caplog):
    model = trained(config)
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        logging.getLogger("transformers").propagate = True
        loaded = TermRetrievalModel.from_pretrained(tmp_path)
    assert caplog.messages == []
    assert_same(model, loaded)
    assert loaded.config.to_dict().keys() == model.config.to_dict().keys()
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_auto_model_finds_the_class(tmp_path):
    trained(tiny_config()).save_pretrained(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), TermRetrievalModel)


def test_base_towers_are_not_saved_but_what_was_trained_is(tmp_path):
    model = trained(whisper_config())
    model.save_pretrained(tmp_path / "frozen")
    assert not any(name.startswith("audio_tower") for name in saved_names(tmp_path / "frozen"))
    model.add_lora(r=2)
    model.save_pretrained(tmp_path / "lora")
    in_tower = {name for name in saved_names(tmp_path / "lora") if name.startswith("audio_tower")}
    assert in_tower
    assert all("lora_" in name for name in in_tower)


def test_a_tower_that_was_trained_is_saved_whole_and_stays_so(tmp_path):
    model = TermRetrievalModel(whisper_config())
    model.train_audio_tower()
    with torch.no_grad():
        model.audio_tower.encoder.layers[0].fc1.weight.mul_(1.01)
    model.train_audio_tower(False)
    model.save_pretrained(tmp_path)
    loaded = TermRetrievalModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode_audio(CLIPS).vectors, model.encode_audio(CLIPS).vectors)
    loaded.save_pretrained(tmp_path / "again")
    assert saved_names(tmp_path / "again") == saved_names(tmp_path)


def test_merged_adapters_hear_the_same_and_are_saved_with_the_tower(tmp_path):
    model = trained(whisper_config(lora={"r": 4}))
    before = model.encode_audio(CLIPS).vectors
    model.merge_lora()
    torch.testing.assert_close(model.encode_audio(CLIPS).vectors, before, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path)
    assert not any("lora" in name for name in saved_names(tmp_path))
    assert torch.equal(
        TermRetrievalModel.from_pretrained(tmp_path).encode_audio(CLIPS).vectors, model.encode_audio(CLIPS).vectors
    )
    with pytest.raises(ValueError, match="no LoRA adapters to merge"):
        model.merge_lora()


@pytest.mark.parametrize("when", ["in the config", "later"])
def test_new_adapters_change_nothing_yet(when):
    plain = TermRetrievalModel(whisper_config())
    adapted = TermRetrievalModel(whisper_config(lora={"r": 2} if when == "in the config" else None))
    if when == "later":
        adapted.add_lora(r=2)
    pcm, num_samples = pad_pcm(CLIPS)
    with torch.no_grad():
        expected, _ = plain.eval().audio_frames(pcm, num_samples)
        features, _ = adapted.eval().audio_frames(pcm, num_samples)
    assert torch.equal(features, expected)


def test_adapters_train_and_the_tower_below_them_does_not():
    model = TermRetrievalModel(whisper_config())
    model.add_lora(r=2)
    trainable = {name for name, values in model.audio_tower.named_parameters() if values.requires_grad}
    assert len(trainable) == 2 * 6 * 4
    assert all("lora_" in name for name in trainable)
    assert model.audio_head.weight.requires_grad
    with pytest.raises(ValueError, match="has LoRA adapters already"):
        model.add_lora()


def test_a_base_tower_with_other_weights_is_refused(tmp_path):
    trained(whisper_config()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["audio_tower_sha256"] = "0" * 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"'openai/whisper-tiny.en' found here has the digest .* was trained on 000"
    ):
        TermRetrievalModel.from_pretrained(tmp_path)


def test_the_trainer_restores_the_best_checkpoint_without_a_warning(tmp_path, caplog):
    model = trained(whisper_config(lora={"r": 2}))
    pcm, num_samples = pad_pcm(CLIPS)
    item = {"pcm_BS": pcm[0], "num_samples_B": num_samples[0]}

    class Objective(Trainer):
        """The loss grows, so that the first checkpoint stays the best."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            output = model(**inputs, text_inputs=model.tokenize(["a", "b"]))
            loss = (output.logit_scale * output.audio_PD @ output.text_ND.T).mean() + 1000 * self.state.global_step
            return (loss, {"audio": output.audio_PD}) if return_outputs else loss

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        learning_rate=0.1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        prediction_loss_only=True,
        remove_unused_columns=False,
        label_names=[],
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Objective(model=model, args=arguments, train_dataset=[item] * 4, eval_dataset=[item] * 2)
    trainer.can_return_loss = True
    with caplog.at_level(logging.WARNING):
        logging.getLogger("transformers").propagate = True
        trainer.train()
    assert not [message for message in caplog.messages if "keys" in message]
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert_same(model.eval(), TermRetrievalModel.from_pretrained(tmp_path / "checkpoint-1").eval())


def test_a_model_goes_to_the_hub_and_comes_back(tmp_path):
    """In a process of its own, because the Hub's address is read on import."""
    script = textwrap.dedent("""
        import sys, torch
        from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
        tower = {"model_type": "whisper", "num_mel_bins": 16, "d_model": 8, "encoder_layers": 1}
        tower |= {"encoder_attention_heads": 2, "encoder_ffn_dim": 16}
        model = TermRetrievalModel(TermRetrievalConfig(audio_tower=tower, text_tower="phonemes:characters"))
        recall = [{"bank": "10,000 terms", "recall@10": 0.9821}]
        model.push_to_hub("user/ears", data="Three clips.", recall=recall)
        loaded = TermRetrievalModel.from_pretrained("user/ears")
        for name, values in model.state_dict().items():
            assert torch.equal(values, loaded.state_dict()[name]), name
        # Not to the bit: how loaded weights lie in memory decides which kernel multiplies them.
        torch.testing.assert_close(model.encode_terms(["sepsis"]), loaded.encode_terms(["sepsis"]))
        loaded.push_to_hub("user/ears")
    """)
    with LocalHub() as hub:
        subprocess.run([sys.executable, "-c", script], env=hub.environment(tmp_path), check=True)
        files = hub.files("user/ears")
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    card = files["README.md"].decode()
    assert "| 10,000 terms | 0.982 |" in card
    assert "Three clips." in card
    assert 'TermRetriever.from_pretrained("user/ears")' in card


# Users' entries -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return trained(tiny_config(windows=WINDOWS))


def test_windows_come_back_in_seconds_and_in_the_order_given(model):
    embeddings = model.encode_audio(CLIPS[::-1], batch_size=2)
    assert embeddings.mask.sum(1).tolist() == [12, 6, 1]
    assert embeddings.vectors.shape == (3, 12, 16)
    frames = [int(model.audio_tower.num_frames(torch.tensor(len(clip)))) for clip in CLIPS]
    assert embeddings.spans[2, 0].tolist() == pytest.approx([0, frames[0] / 25])
    assert embeddings.spans[0, 11].tolist() == pytest.approx([(frames[2] - 40) / 25, frames[2] / 25])
    alone = model.encode_audio([CLIPS[1]])
    torch.testing.assert_close(embeddings.vectors[1, :6], alone.vectors[0], atol=1e-5, rtol=0)


def test_a_clip_is_the_same_as_int16_floats_tensor_or_file(model, tmp_path):
    pcm = CLIPS[1]
    soundfile.write(tmp_path / "mono.wav", pcm, 16_000)
    stereo = np.repeat(np.repeat(pcm, 3)[:, None], 2, axis=1)
    soundfile.write(tmp_path / "stereo.flac", stereo, 48_000)
    clips = [
        pcm,
        pcm.astype(np.float32) / 32768,
        torch.from_numpy(pcm),
        tmp_path / "mono.wav",
        {"array": pcm.astype(np.float64) / 32768, "sampling_rate": 16_000},
        str(tmp_path / "stereo.flac"),
    ]
    vectors = model.encode_audio(clips).vectors
    for index in range(1, 5):
        torch.testing.assert_close(vectors[index], vectors[0], atol=1e-6, rtol=0)
    assert vectors[5].shape == vectors[0].shape


@pytest.mark.parametrize(
    ("clip", "complaint"),
    [
        (np.zeros(0, np.int16), "clip 1: holds 0 samples"),
        (np.array([0.1, np.nan] * 4000), "clip 1: sample 1 is NaN or infinite"),
        (np.full(16_000, 900.0), r"clip 1: 16000 of 16000 samples lie outside \[-1, 1\]"),
        (np.zeros((16_000, 2, 1), np.int16), r"clip 1: an array of shape \(16000, 2, 1\)"),
        (np.zeros(16_000, np.int64), "clip 1: an array of int64"),
        ({"path": "x.wav"}, "clip 1: the file does not exist"),
        (np.zeros(40 * 60 * 16_000, np.int16), "clip 1 lasts 2400.0 s; the audio tower takes at most 30 s"),
    ],
)
def test_a_clip_that_cannot_be_heard_is_named(model, clip, complaint):
    with pytest.raises(ValueError, match=complaint):
        model.encode_audio([CLIPS[0], clip])


def test_a_file_that_is_missing_or_broken_is_named(model, tmp_path):
    with pytest.raises(ValueError, match=r"none\.wav: the file does not exist"):
        model.encode_audio([tmp_path / "none.wav"])
    (tmp_path / "broken.flac").write_bytes(b"fLaC" + b"\0" * 50)
    with pytest.raises(ValueError, match=r"broken\.flac: soundfile cannot read it"):
        model.encode_audio([tmp_path / "broken.flac"])


def test_terms_are_embedded_in_order_whatever_the_batch(model):
    terms = [f"{'very ' * (index % 7)}long term {index}" for index in range(40)]
    vectors = model.encode_terms(terms, batch_size=7)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, torch.cat([model.encode_terms([term]) for term in terms]), atol=1e-5, rtol=0)
    assert model.encode_terms([]).shape == (0, 16)


def test_a_blank_term_is_refused(model):
    with pytest.raises(ValueError, match="blank"):
        model.encode_terms(["sepsis", " "])


def test_encoding_leaves_the_mode_as_it_was(model):
    model.train()
    model.encode_terms(TERMS)
    assert model.training
    model.eval()


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"segments": ()}, "segments must be whole numbers above 0"),
        ({"embedding_dim": 0}, "embedding_dim must be whole numbers above 0"),
        ({"windows": {"sizes": (10,)}}, "windows takes exactly the keys 'sizes' and 'stride'"),
        ({"windows": {"sizes": (10,), "stride": 0}}, r"windows\['stride'\] must be"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"audio_layers": 3}, "audio_layers is 3; the tower has 2"),
        ({"audio_tower": {"model_type": "wavenet"}}, "is of type 'wavenet'; there are"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        TermRetrievalModel(tiny_config(**fields))


@pytest.mark.parametrize("name", ["outputs/nope", "/nowhere/at/all"])
def test_a_model_that_is_not_there_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"no model '{name}': it is no folder here"):
        TermRetrievalModel.from_pretrained(name)
