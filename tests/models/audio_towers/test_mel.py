"""Spectrograms on the device equal those of the stock feature extractors, frame by frame, for any mix of lengths.

Whisper's at its 30 s pad; those of Qwen3, Parakeet and Wav2Vec2-BERT on each clip alone.
"""

import numpy as np
import pytest
import torch
from transformers import ParakeetFeatureExtractor, SeamlessM4TFeatureExtractor, WhisperFeatureExtractor

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.models.audio_towers.mel import GUARD_FRAMES, log_mel, reflected_log_mel
from qwen_term_retrieval.models.audio_towers.normalized_mel import kaldi_fbank, parakeet_mel

LENGTHS = [4_800, 16_001, 48_000, 33_333, 159_999, 201]


def noise(num_samples, seed=0, loudness=3000):
    """Noise with a slow envelope: loud and quiet frames, as in speech."""
    generator = np.random.default_rng(seed)
    envelope = np.abs(np.sin(np.arange(num_samples) / 4000 + seed)) + 0.01
    return np.clip(generator.standard_normal(num_samples) * envelope * loudness, -32768, 32767).astype(np.int16)


def reference(clips, num_mel_bins):
    """Mel frames and mask of the stock feature extractor at 30 s."""
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins)
    waves = [clip.astype(np.float32) / 32768 for clip in clips]
    features = extractor(waves, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
    return features["input_features"], features["attention_mask"].sum(-1)


@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_valid_and_guard_frames_equal_the_stock_extractor_at_30_s(num_mel_bins):
    clips = [noise(length, seed) for seed, length in enumerate(LENGTHS)]
    mel, num_frames = log_mel(*pad_pcm(clips), num_mel_bins=num_mel_bins, max_frames=3000)
    expected, expected_frames = reference(clips, num_mel_bins)
    assert num_frames.tolist() == expected_frames.tolist()
    assert mel.shape[-1] % 4 == 0
    assert mel.shape[-1] >= max(num_frames) + GUARD_FRAMES
    torch.testing.assert_close(mel, expected[..., : mel.shape[-1]], atol=1e-5, rtol=0)


def test_what_a_reused_buffer_holds_behind_a_clip_is_not_heard():
    pcm, num_samples = pad_pcm([noise(8_000), noise(16_000)])
    clean, _ = log_mel(pcm, num_samples, num_mel_bins=80, max_frames=3000)
    pcm[0, 8_000:] = 20_000
    dirty, _ = log_mel(pcm, num_samples, num_mel_bins=80, max_frames=3000)
    assert torch.equal(clean, dirty)


def test_a_quiet_clip_keeps_its_own_maximum_beside_a_loud_one():
    quiet, loud = noise(16_000, loudness=20), noise(16_000, loudness=9000)
    alone, _ = log_mel(*pad_pcm([quiet]), num_mel_bins=80, max_frames=3000)
    together, _ = log_mel(*pad_pcm([quiet, loud]), num_mel_bins=80, max_frames=3000)
    torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=0)


def test_floats_and_int16_of_the_same_sound_give_the_same_frames():
    pcm, num_samples = pad_pcm([noise(12_345)])
    from_int16, _ = log_mel(pcm, num_samples, num_mel_bins=80, max_frames=3000)
    from_float, _ = log_mel(pcm.float() / 32768, num_samples, num_mel_bins=80, max_frames=3000)
    assert torch.equal(from_int16, from_float)


def test_a_full_30_s_clip_has_no_frame_more_than_the_tower_takes():
    clips = [noise(480_000)]
    mel, num_frames = log_mel(*pad_pcm(clips), num_mel_bins=80, max_frames=3000)
    expected, _ = reference(clips, 80)
    assert (mel.shape[-1], num_frames.tolist()) == (3000, [3000])
    torch.testing.assert_close(mel, expected, atol=1e-5, rtol=0)


def test_mel_stays_in_full_precision_under_autocast():
    pcm, num_samples = pad_pcm([noise(16_000)])
    full, _ = log_mel(pcm, num_samples, num_mel_bins=80, max_frames=3000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = log_mel(pcm, num_samples, num_mel_bins=80, max_frames=3000)
    assert torch.equal(full, mixed)


# Clip by clip -------------------------------------------------------------------------------------------------------


def whisper_alone(clip):
    wave = clip.astype(np.float32) / 32768
    extractor = WhisperFeatureExtractor(feature_size=128)
    return extractor(wave, sampling_rate=16_000, padding=True, truncation=False, return_tensors="pt").input_features[0]


def parakeet_alone(clip):
    inputs = ParakeetFeatureExtractor()(clip.astype(np.float32) / 32768, sampling_rate=16_000, return_tensors="pt")
    return inputs.input_features[0][inputs.attention_mask[0].bool()]


def seamless_alone(clip):
    extractor = SeamlessM4TFeatureExtractor(stride=1)
    return extractor(
        clip.astype(np.float32) / 32768, sampling_rate=16_000, pad_to_multiple_of=None, return_tensors="pt"
    ).input_features[0]


CLIP_BY_CLIP = {
    "qwen3": (lambda *batch: reflected_log_mel(*batch, num_mel_bins=128), lambda clip: whisper_alone(clip).T),
    "parakeet": (lambda *batch: parakeet_mel(*batch, num_mel_bins=80), parakeet_alone),
    "wav2vec2-bert": (lambda *batch: kaldi_fbank(*batch, num_mel_bins=80), seamless_alone),
}


@pytest.fixture(scope="module")
def speech(say):
    """Speech with digital silence in it, and a quiet clip: not so quiet that bins lie on the logarithm's floor."""
    spoken = np.concatenate([say("atrial fibrillation"), np.zeros(3_000, np.int16), say("it is twenty past seven")])
    return [
        spoken[:5_001],
        spoken[:40_007],
        spoken,
        (spoken // 50).astype(np.int16),
        spoken[3_000:3_777],
    ]


@pytest.mark.parametrize("kind", CLIP_BY_CLIP)
def test_frames_of_speech_equal_the_stock_extractor_on_each_clip_alone(kind, speech):
    ours, stock = CLIP_BY_CLIP[kind]
    mel, num_frames = ours(*pad_pcm(speech))
    mel_BTM = mel.transpose(1, 2) if kind == "qwen3" else mel
    for row, clip in enumerate(speech):
        expected, frames = stock(clip), int(num_frames[row])
        assert len(expected) == frames
        torch.testing.assert_close(mel_BTM[row, :frames], expected, atol=1e-4, rtol=0)
        assert (mel_BTM[row, frames:] == 0).all()


@pytest.mark.parametrize("kind", CLIP_BY_CLIP)
def test_a_reused_buffer_and_floats_change_no_frame(kind, speech):
    ours, _ = CLIP_BY_CLIP[kind]
    pcm, num_samples = pad_pcm(speech)
    clean, _ = ours(pcm, num_samples)
    torch.testing.assert_close(ours(pcm.float() / 32768, num_samples)[0], clean, atol=1e-6, rtol=0)
    pcm[0, num_samples[0] :] = 20_000
    assert torch.equal(ours(pcm, num_samples)[0], clean)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(pcm, num_samples)[0], clean)
