"""Every other tower gives what its stock feature extractor and encoder give for a clip alone, whatever its batch mates.

Weights are random, classes are real and small; the sound is speech.
"""

import numpy as np
import pytest
import torch
from transformers import ParakeetFeatureExtractor, SeamlessM4TFeatureExtractor, WhisperFeatureExtractor
from transformers.models.qwen3_asr.feature_extraction_qwen3_asr import Qwen3ASRFeatureExtractor

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.models.audio_towers import AUDIO_TOWERS, Qwen3ASRTower
from qwen_term_retrieval.models.lora import inject_lora
from tests.doubles.tiny_towers import ALL, CONFIGS, CONFORMER, QWEN3, WHISPER, build


@pytest.fixture(scope="module")
def clips(say):
    """0.31, 0.74, 1.5, 3.1 and 11.2 s of speech: none a whole number of frames."""
    speech = np.concatenate([say(f"the {word} of the patient in room seven") for word in ("heart", "lung", "rate") * 3])
    assert len(speech) > 185_000
    return [speech[2000 : 2000 + length] for length in (4_967, 11_845, 24_013, 49_777, 179_203)]


def stock_frames(tower, kind, clip):
    """The stock extractor and encoder on one clip, encoder in double precision: the frames of the last layer."""
    wave = clip.astype(np.float32) / 32768
    encoder = tower.encoder
    if kind == "qwen3_omni_moe_audio_encoder":
        extractor = WhisperFeatureExtractor(feature_size=128)
        inputs = extractor(
            wave, sampling_rate=16_000, padding=True, truncation=False, return_attention_mask=True, return_tensors="pt"
        )
        mask = inputs["attention_mask"].bool()
        mel = inputs["input_features"].permute(0, 2, 1)[mask].T
        return encoder(mel.double(), feature_lens=mask.sum(-1)).last_hidden_state
    if kind == "qwen3_asr_encoder":
        inputs = Qwen3ASRFeatureExtractor()(wave, sampling_rate=16_000, padding=True, return_attention_mask=True)
        mask = inputs["attention_mask"]
        return encoder(inputs["input_features"].double(), input_features_mask=mask).last_hidden_state
    extractor = ParakeetFeatureExtractor() if kind == "parakeet_encoder" else SeamlessM4TFeatureExtractor()
    inputs = extractor(wave, sampling_rate=16_000, return_tensors="pt")
    output = encoder(inputs["input_features"].double(), attention_mask=inputs["attention_mask"]).last_hidden_state[0]
    return output if kind == "parakeet_encoder" else output[: int(inputs["attention_mask"].sum())]


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_tower_equals_its_stock_path_on_each_clip_alone(kind, clips):
    tower = build(kind).double().eval()
    with torch.no_grad():
        features, num_frames = tower(*pad_pcm(clips))
        for row, clip in enumerate(clips):
            expected, frames = stock_frames(tower, kind, clip), int(num_frames[row])
            if kind == "parakeet_encoder" or (kind == "qwen3_asr_encoder" and len(clip) < 8_000):
                # The stock path goes on into silence: Parakeet's by half a frame, Qwen3-ASR's to half a second.
                assert len(expected) >= frames
                expected = expected[:frames]
            assert len(expected) == frames
            # Kaldi's filterbank takes logarithms of what double and single precision round apart.
            atol = 1e-4 if kind == "wav2vec2-bert" else 1e-6
            torch.testing.assert_close(features[row, :frames], expected, atol=atol, rtol=0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_clip_does_not_depend_on_its_batch_mates(kind, clips):
    tower = build(kind).double().eval()
    with torch.no_grad():
        together, num_frames = tower(*pad_pcm(clips), num_layers=2)
        assert together.shape[:2] == (len(clips), 2)
        for row, clip in enumerate(clips):
            alone, frames = tower(*pad_pcm([clip]), num_layers=2)
            assert int(frames) == int(num_frames[row])
            torch.testing.assert_close(together[row, :, : int(frames)], alone[0, :, : int(frames)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_frame_rate_is_what_long_clips_give(kind):
    tower = build(kind)
    assert int(tower.num_frames(torch.tensor(20 * 16_000))) == pytest.approx(20 * tower.frame_rate, abs=1)


@pytest.mark.parametrize("kind", ALL)
def test_the_shortest_clip_is_heard_as_if_alone_beside_a_long_one_and_a_shorter_one_is_named(kind, say):
    tower = build(kind).double().eval()
    speech = say("heart")[2000:]
    length = next(n for n in range(1, 3000) if n >= tower.min_samples and int(tower.num_frames(torch.tensor(n))) > 0)
    with torch.no_grad():
        features, num_frames = tower(*pad_pcm([speech[:length], speech]))
        alone, frames = tower(*pad_pcm([speech[:length]]))
    assert int(frames) == int(num_frames[0]) == 1
    torch.testing.assert_close(features[0, :1], alone[0, :1], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=f"clip 1 of the batch has {length - 1} samples: too short for one encoder"):
        tower(*pad_pcm([speech, speech[: length - 1]]))


@pytest.mark.parametrize("kind", ALL)
def test_adapters_reach_every_layer_and_checkpointing_changes_no_gradient(kind, clips):
    tower_config = ALL[kind] | {"model_type": kind, "dropout": 0.0, "attention_dropout": 0.0}
    tower_config |= {"activation_dropout": 0.0, "hidden_dropout": 0.0, "conformer_conv_dropout": 0.0}
    torch.manual_seed(0)
    model = TermRetrievalModel(
        TermRetrievalConfig(
            audio_tower=tower_config, text_tower="phonemes:characters", lora={"r": 2, "lora_dropout": 0.0}
        )
    ).train()
    names = {name for name, values in model.audio_tower.named_parameters() if values.requires_grad}
    assert names
    assert all("lora_" in name for name in names)
    assert {int(name.split("layers.")[1].split(".")[0]) for name in names} == {0, 1}
    for name, values in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(values, std=0.1)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
            model.enable_input_require_grads()
        model.zero_grad()
        pcm, num_samples = pad_pcm(clips[:3])
        model(pcm_BS=pcm, num_samples_B=num_samples).audio_PD.square().cumsum(1).sum().backward()
        gradients.append({name: values.grad for name, values in model.named_parameters() if name.endswith("weight")})
    for name in names:
        assert gradients[0][f"audio_tower.{name}"].abs().sum() > 0
        torch.testing.assert_close(gradients[1][f"audio_tower.{name}"], gradients[0][f"audio_tower.{name}"])


@pytest.mark.parametrize("kind", ALL)
def test_a_saved_model_on_any_tower_hears_the_same(kind, clips, tmp_path):
    """Buffers that no checkpoint holds, such as positions, have to be made again."""
    config = TermRetrievalConfig(audio_tower=ALL[kind] | {"model_type": kind}, text_tower="phonemes:characters")
    model = TermRetrievalModel(config).eval()
    model.save_pretrained(tmp_path)
    loaded = TermRetrievalModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode_audio(clips[:3]).vectors, model.encode_audio(clips[:3]).vectors)


@pytest.mark.parametrize("kind", ALL)
def test_training_a_whole_tower_leaves_no_parameter_without_gradient(kind, clips):
    model = TermRetrievalModel(
        TermRetrievalConfig(audio_tower=ALL[kind] | {"model_type": kind}, text_tower="phonemes:characters")
    )
    model.train_audio_tower()
    pcm, num_samples = pad_pcm(clips[:2])
    model.train()(pcm_BS=pcm, num_samples_B=num_samples).audio_PD.square().cumsum(1).sum().backward()
    tower = model.audio_tower
    assert [name for name, values in tower.named_parameters() if values.requires_grad and values.grad is None] == []


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("way", ["autocast", "weights"])
def test_half_precision_hears_nearly_the_same(kind, way, clips):
    tower = build(kind).eval()
    with torch.no_grad():
        expected, num_frames = tower(*pad_pcm(clips[:3]))
        tower = tower.bfloat16() if way == "weights" else tower
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            features, _ = tower(*pad_pcm(clips[:3]))
    for row, frames in enumerate(num_frames.tolist()):
        pair = features[row, :frames].float().flatten(), expected[row, :frames].flatten()
        assert torch.cosine_similarity(*pair, dim=0) > 0.98


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_batch_normalisation_learns_where_the_tower_is_trained(clips, trained):
    tower = build("parakeet_encoder")
    tower.encoder.requires_grad_(trained)
    tower.train()
    before = {name: values.clone() for name, values in tower.encoder.named_buffers() if "running" in name}
    tower(*pad_pcm(clips[:2]))
    assert before
    now = dict(tower.encoder.named_buffers())
    assert [torch.equal(now[name], values) for name, values in before.items()] == [not trained] * len(before)


@pytest.mark.parametrize("kind", ALL)
def test_the_attention_backend_that_is_asked_for_is_the_one_that_runs(kind, clips):
    config = TermRetrievalConfig(
        audio_tower=ALL[kind] | {"model_type": kind}, text_tower="phonemes:characters", attn_implementation="eager"
    )
    torch.manual_seed(0)
    eager = TermRetrievalModel(config).eval()
    assert eager.audio_tower.encoder.config._attn_implementation == "eager"
    vectors = eager.encode_audio(clips[:3]).vectors
    eager.set_attn_implementation("sdpa")
    assert eager.audio_tower.encoder.config._attn_implementation == "sdpa"
    torch.testing.assert_close(eager.encode_audio(clips[:3]).vectors, vectors, atol=1e-5, rtol=0)


def test_the_encoder_part_of_a_whole_checkpoints_config_is_found():
    whole = {"model_type": "qwen3_omni_moe", "thinker_config": {"audio_config": QWEN3}}
    assert AUDIO_TOWERS["qwen3_omni_moe"].encoder_config_of(whole) == QWEN3
    assert Qwen3ASRTower.encoder_config_of({"audio_config": QWEN3}) == QWEN3
    assert AUDIO_TOWERS["qwen2_audio"].encoder_config_of({"audio_config": WHISPER}) == WHISPER
    assert AUDIO_TOWERS["whisper"].encoder_config_of(WHISPER) == WHISPER
    assert AUDIO_TOWERS["parakeet_ctc"].encoder_config_of({"encoder_config": CONFORMER}) == CONFORMER


def test_lora_targets_match_nothing_outside_the_layers():
    for kind in ALL:
        encoder = build(kind).encoder
        inject_lora(encoder, {"r": 1}, AUDIO_TOWERS[kind].lora_targets)
        assert all("layers." in name for name, _ in encoder.named_parameters() if "lora_" in name)
