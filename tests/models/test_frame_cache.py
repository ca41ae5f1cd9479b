"""Features of a frozen tower are computed once a clip, and read back as the tower gave them."""

import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.models import frame_cache as frame_cache
from qwen_term_retrieval.models.frame_cache import FrameCache, FrameCacheError, clip_digests


def tiny_model(audio_layers=1, seed=0):
    torch.manual_seed(seed)
    tower = {"model_type": "whisper", "num_mel_bins": 16, "d_model": 8, "encoder_layers": 2}
    tower |= {"encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    config = TermRetrievalConfig(audio_tower=tower, audio_layers=audio_layers, text_tower="phonemes:characters")
    model = TermRetrievalModel(config)
    model.train_audio_tower(False)
    return model.eval()


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def clips():
    generator = np.random.default_rng(0)
    return [(generator.standard_normal(n) * 3000).astype(np.int16) for n in (8_000, 20_000, 3_200, 12_345, 8_000)]


def build(model, clips, cache_dir, *, keys=None, batch_size=32, dtype="float16"):
    """What training does on one rank, here in any number type."""
    keys = keys or [f"clip {number}" for number in range(len(clips))]
    digests = clip_digests(clips, keys)
    cache = FrameCache.open(model, digests, cache_dir, dtype)
    batches = cache.missing_batches([length for _, length in digests], batch_size)
    cache.compute(model, clips, batches, keys, show_progress=False)
    return cache


def frames(model, clips):
    with torch.no_grad():
        return model.audio_frames(*pad_pcm(clips))


@pytest.mark.parametrize("audio_layers", [1, 2])
def test_a_batch_comes_back_as_the_tower_gave_it(tmp_path, clips, audio_layers):
    model = tiny_model(audio_layers)
    cache = build(model, clips, cache_dir=tmp_path, batch_size=2, dtype="float32")
    cached, num_frames = cache.get([3, 1, 4])
    expected, expected_frames = frames(model, [clips[3], clips[1], clips[4]])
    assert num_frames.tolist() == expected_frames.tolist()
    assert cached.shape[:-2] == ((3,) if audio_layers == 1 else (3, 2))
    for row, reference, length in zip(cached, expected, num_frames.tolist(), strict=True):
        torch.testing.assert_close(row[..., :length, :], reference[..., :length, :], atol=1e-5, rtol=0)
        assert (row[..., length:, :] == 0).all()


def test_half_precision_is_the_default_and_close(model, tmp_path, clips):
    cached, num_frames = build(model, clips, cache_dir=tmp_path).get([1])
    expected, _ = frames(model, [clips[1]])
    assert cached.dtype == torch.float16
    torch.testing.assert_close(cached.float(), expected[:, : num_frames[0]], atol=5e-3, rtol=0)


def test_only_new_clips_are_computed_and_repeats_once(model, tmp_path, clips):
    assert build(model, clips[:2], cache_dir=tmp_path).num_computed == 2
    assert build(model, [*clips, clips[2]], cache_dir=tmp_path).num_computed == 3
    again = build(model, clips[::-1], cache_dir=tmp_path)
    assert (again.num_computed, len(again)) == (0, 5)
    expected, expected_frames = frames(model, [clips[0]])
    cached, _ = again.get([4])
    torch.testing.assert_close(cached.float(), expected[:, : expected_frames[0]], atol=5e-3, rtol=0)


def test_a_process_that_is_sent_the_cache_opens_its_files(model, tmp_path, clips):
    cache = build(model, clips, cache_dir=tmp_path)
    cached, _ = cache.get(range(5))
    sent = pickle.dumps(cache)
    assert len(sent) < cached.numel()
    assert torch.equal(pickle.loads(sent).get(range(5))[0], cached)


def test_other_weights_layers_or_number_types_share_nothing(model, tmp_path, clips):
    build(model, clips, cache_dir=tmp_path)
    for other, dtype in ((tiny_model(seed=1), "float16"), (tiny_model(2), "float16"), (model, "float32")):
        assert build(other, clips, cache_dir=tmp_path, dtype=dtype).num_computed == len(clips)
    assert build(tiny_model(), clips, cache_dir=tmp_path).num_computed == 0


def test_a_dataset_with_an_audio_column_is_taken_row_by_row(model, tmp_path, clips):
    rows = Dataset.from_dict({"audio": [clip.astype(np.float32) / 32768 for clip in clips], "text": ["x"] * 5})
    from_rows = build(model, rows.with_format("numpy"), cache_dir=tmp_path)
    assert from_rows.num_computed == 5
    assert build(model, clips, cache_dir=tmp_path).num_computed == 0


def test_what_was_finished_before_a_kill_is_kept(model, tmp_path, clips, monkeypatch):
    monkeypatch.setattr(frame_cache, "_SEGMENT_BYTES", 1)
    calls = []

    def die_at_the_third_batch(pcm, num_samples):
        calls.append(len(pcm))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return TermRetrievalModel.audio_frames(model, pcm, num_samples)

    with monkeypatch.context() as patch:
        patch.setattr(model, "audio_frames", die_at_the_third_batch)
        with pytest.raises(KeyboardInterrupt):
            build(model, clips, cache_dir=tmp_path, batch_size=1)
    assert build(model, clips, cache_dir=tmp_path, batch_size=1).num_computed == 3


def test_a_segment_that_lost_bytes_is_refused(model, tmp_path, clips):
    cache = build(model, clips, cache_dir=tmp_path)
    (segment,) = cache.folder.glob("*.frames")
    segment.write_bytes(segment.read_bytes()[:-2])
    with pytest.raises(FrameCacheError, match="has another size than its index says"):
        build(model, clips, cache_dir=tmp_path)


def test_a_tower_in_training_has_no_cache(model, tmp_path, clips):
    model.train_audio_tower()
    with pytest.raises(ValueError, match="the audio tower is being trained"):
        build(model, clips, cache_dir=tmp_path)


def test_an_unfit_clip_is_named_by_its_key(model, tmp_path, clips):
    keys = ["a", "b", "POD/7"]
    with pytest.raises(ValueError, match="POD/7: holds 0 samples"):
        build(model, [*clips[:2], clips[0][:0]], keys=keys, cache_dir=tmp_path)
