"""Towers without 30 s of padding give what the stock encoders give, with real weights and lengths mixed in a batch.

The references are stock classes run by their own `forward`: `Qwen2AudioEncoder` at 30 s with its attention mask,
carrying Whisper-tiny.en's weights (its layers are Whisper's; its last hidden states, normalised, are what Whisper's
encoder would give if it took a mask), and `WhisperEncoder` cut to a clip's own frames, one clip at a time.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2AudioEncoderConfig, WhisperConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.models.audio_towers import Qwen2AudioTower, WhisperTower
from qwen_term_retrieval.models.audio_towers.mel import log_mel
from qwen_term_retrieval.models.weights.checkpoints import load_tensors, resolve_checkpoint

LENGTHS_S = [0.3, 10.0, 1.2345, 3.0, 0.471]


def speechlike(seconds, seed):
    generator = np.random.default_rng(seed)
    num_samples = int(seconds * 16_000)
    time = np.arange(num_samples) / 16_000
    tone = sum(np.sin(2 * np.pi * pitch * time * (1 + 0.1 * np.sin(3 * time))) for pitch in (120, 700, 1900))
    wave = (tone * np.abs(np.sin(2 * np.pi * 2.5 * time)) + generator.standard_normal(num_samples) * 0.1) * 4000
    return np.clip(wave, -32768, 32767).astype(np.int16)


@pytest.fixture(scope="module")
def whisper():
    """Config and encoder weights of Whisper-tiny.en."""
    folder = resolve_checkpoint("openai/whisper-tiny.en")
    return WhisperConfig.from_pretrained(folder), load_tensors(folder, WhisperTower.weight_prefixes)


@pytest.fixture(scope="module")
def whisper_tower(whisper):
    config, weights = whisper
    tower = WhisperTower(config.to_dict())
    tower.encoder.load_state_dict(weights)
    return tower.double().eval()


@pytest.fixture(scope="module")
def stock_qwen(whisper):
    """The stock Qwen2-Audio encoder with Whisper-tiny.en's weights."""
    config, weights = whisper
    encoder = Qwen2AudioEncoder(
        Qwen2AudioEncoderConfig(
            num_mel_bins=config.num_mel_bins,
            d_model=config.d_model,
            encoder_layers=config.encoder_layers,
            encoder_attention_heads=config.encoder_attention_heads,
            encoder_ffn_dim=config.encoder_ffn_dim,
        )
    )
    encoder.load_state_dict(weights)
    return encoder.double().eval()


@pytest.fixture(scope="module")
def qwen_tower(stock_qwen):
    tower = Qwen2AudioTower(stock_qwen.config.to_dict())
    tower.encoder.load_state_dict(stock_qwen.state_dict())
    return tower.double().eval()


@pytest.fixture(scope="module")
def clips():
    return [speechlike(seconds, seed) for seed, seconds in enumerate(LENGTHS_S)]


@pytest.fixture(scope="module")
def stock_qwen_at_30_s(stock_qwen, clips):
    """Its output, its layers' outputs before pooling, and the valid frames of both, for all clips."""
    pcm, num_samples = pad_pcm([*clips, np.zeros(480_000, np.int16)])
    mel, num_mel = log_mel(pcm, num_samples, num_mel_bins=80, max_frames=3000)
    mel, num_mel = mel[:-1].double(), num_mel[:-1]
    before, after = stock_qwen._get_feat_extract_output_lengths(num_mel)
    mask = create_bidirectional_mask(
        config=stock_qwen.config,
        inputs_embeds=torch.zeros(len(clips), 1500, 1, dtype=torch.float64),
        attention_mask=(torch.arange(1500) < before[:, None]).long(),
    )
    hidden_states = []
    hooks = [layer.register_forward_hook(lambda *call: hidden_states.append(call[-1])) for layer in stock_qwen.layers]
    with torch.no_grad():
        output = stock_qwen(mel, attention_mask=mask).last_hidden_state
    for hook in hooks:
        hook.remove()
    return output, hidden_states, before.tolist(), after.tolist()


def valid(features, num_frames):
    return torch.cat([row[:frames] for row, frames in zip(features, num_frames, strict=True)])


def test_qwen2_audio_tower_equals_the_stock_encoder_at_30_s_on_valid_frames(qwen_tower, clips, stock_qwen_at_30_s):
    expected, _, _, expected_frames = stock_qwen_at_30_s
    with torch.no_grad():
        features, num_frames = qwen_tower(*pad_pcm(clips))
    assert num_frames.tolist() == expected_frames
    assert features.shape[1] < 260
    torch.testing.assert_close(valid(features, expected_frames), valid(expected, expected_frames), atol=1e-5, rtol=0)


def test_whisper_tower_equals_the_stock_layers_at_30_s_with_a_mask(
    whisper_tower, clips, stock_qwen, stock_qwen_at_30_s
):
    _, hidden_states, expected_frames, _ = stock_qwen_at_30_s
    with torch.no_grad():
        features, num_frames = whisper_tower(*pad_pcm(clips), num_layers=2)
        expected = [stock_qwen.layer_norm(hidden) for hidden in hidden_states[-2:]]
    assert num_frames.tolist() == expected_frames
    for layer in range(2):
        torch.testing.assert_close(
            valid(features[:, layer], expected_frames), valid(expected[layer], expected_frames), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("seconds", [0.3, 2.0, 10.0])
def test_whisper_tower_equals_the_stock_encoder_cut_to_the_clip(whisper, whisper_tower, seconds):
    config, weights = whisper
    mel, num_mel = log_mel(*pad_pcm([speechlike(seconds, 7)]), num_mel_bins=80, max_frames=3000)
    num_frames = mel.shape[-1] // 2
    short = WhisperEncoder(WhisperConfig.from_dict(config.to_dict() | {"max_source_positions": num_frames}))
    positions = "embed_positions.weight"
    short.load_state_dict(weights | {positions: weights[positions][:num_frames]})
    with torch.no_grad():
        expected = short.double().eval()(mel.double()).last_hidden_state
        (features,) = whisper_tower.encode(mel.double(), torch.full_like(num_mel, mel.shape[-1]))
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


def test_whisper_tower_equals_the_stock_encoder_on_a_full_30_s_clip(whisper, whisper_tower):
    config, weights = whisper
    pcm, num_samples = pad_pcm([speechlike(30.0, 3)])
    mel, _ = log_mel(pcm, num_samples, num_mel_bins=80, max_frames=3000)
    stock = WhisperEncoder(config)
    stock.load_state_dict(weights)
    with torch.no_grad():
        expected = stock.double().eval()(mel.double()).last_hidden_state
        features, num_frames = whisper_tower(pcm, num_samples)
    assert num_frames.tolist() == [1500]
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tower_name", ["whisper_tower", "qwen_tower"])
def test_a_clip_does_not_depend_on_its_batch_mates(tower_name, clips, request):
    tower = request.getfixturevalue(tower_name)
    with torch.no_grad():
        together, num_frames = tower(*pad_pcm(clips))
        for index, clip in enumerate(clips):
            alone, _ = tower(*pad_pcm([clip]))
            frames = int(num_frames[index])
            torch.testing.assert_close(together[index, :frames], alone[0, :frames], atol=1e-5, rtol=0)


def test_single_precision_stays_close_to_double(whisper, whisper_tower, clips):
    config, weights = whisper
    single = WhisperTower(config.to_dict()).eval()
    single.encoder.load_state_dict(weights)
    with torch.no_grad():
        features, num_frames = single(*pad_pcm(clips))
        expected, _ = whisper_tower(*pad_pcm(clips))
    difference = (valid(features, num_frames) - valid(expected, num_frames)).abs()
    assert float(difference.mean()) < 1e-5
    assert float(difference.max()) < 2e-3


@pytest.mark.parametrize(
    ("num_samples", "complaint"),
    [(0, "0 samples: too short"), (480_001, "at most 30 s"), (40 * 60 * 16_000, "lasts 2400.0 s")],
)
def test_a_clip_that_the_tower_cannot_take_is_named(whisper_tower, num_samples, complaint):
    with pytest.raises(ValueError, match=f"clip 1 of the batch .*{complaint}"):
        whisper_tower(torch.zeros(2, 16_000, dtype=torch.int16), torch.tensor([16_000, num_samples]))


def test_a_clip_shorter_than_one_pooled_frame_is_refused(qwen_tower):
    with pytest.raises(ValueError, match="320 samples: too short for one encoder frame"):
        qwen_tower(torch.zeros(1, 320, dtype=torch.int16), torch.tensor([320]))


def test_only_the_tower_of_a_sharded_checkpoint_is_read(tmp_path):
    """The language model's shard is not even there."""
    config = Qwen2AudioEncoderConfig(num_mel_bins=16, d_model=8, encoder_layers=1, encoder_attention_heads=2)
    weights = Qwen2AudioTower(config.to_dict()).encoder.state_dict()
    shard = "model-00001-of-00002.safetensors"
    tensors = {f"audio_tower.{name}": values for name, values in weights.items()}
    save_file(tensors, tmp_path / shard)
    weight_map = dict.fromkeys(tensors, shard) | {"language_model.lm_head.weight": "model-00002-of-00002.safetensors"}
    index = f'{{"weight_map": {weight_map}}}'.replace("'", '"')
    (tmp_path / "model.safetensors.index.json").write_text(index)
    loaded = load_tensors(tmp_path, Qwen2AudioTower.weight_prefixes)
    assert set(loaded) == set(weights)
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
