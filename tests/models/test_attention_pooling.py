"""Attention pooling: exact weighted means of any span, the pyramid before it is trained, blind to padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.models.spans.attention_pooling import AttentionPooling
from qwen_term_retrieval.models.spans.pooling import pool_pyramid

HIDDEN, HEADS = 8, 4


def trained(segments=(1, 2), seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    pooling = AttentionPooling(HIDDEN, segments, HEADS)
    with torch.no_grad():
        pooling.queries_AH.copy_(torch.randn(HEADS, HIDDEN, generator=generator) * scale)
    return pooling.double()


def frames(*lengths, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(lengths), max(lengths), HIDDEN, generator=generator, dtype=torch.float64)


def by_the_definition(pooling, frames_TH, start, end):
    """The softmax of a head's scores over whole frames of a span, times its channels."""
    span_TH = frames_TH[start:end]
    scores_TA = 8 * torch.tanh(pooling.norm(span_TH) @ pooling.queries_AH.T / 8)
    weights_TA = scores_TA.softmax(0)
    return (span_TH.unflatten(-1, (HEADS, -1)) * weights_TA[..., None]).sum(0).flatten()


@given(st.integers(1, 30), st.data(), st.sampled_from([0.1, 1.0, 50.0]))
@settings(max_examples=60, deadline=None)
def test_a_span_is_the_softmax_weighted_mean_of_its_frames(length, data, scale):
    start = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(start + 1, length))
    pooling, features = trained((1,), scale=scale), frames(length)
    with torch.no_grad():
        pooled = pooling(
            features, torch.tensor([length]), torch.tensor([0]), torch.tensor([start]), torch.tensor([end])
        )
        expected = by_the_definition(pooling, features[0], start, end)
    torch.testing.assert_close(pooled[0], expected, atol=1e-7, rtol=0)


def test_each_segment_has_its_own_softmax():
    pooling, features = trained((1, 2)), frames(8)
    with torch.no_grad():
        pooled = pooling(features, torch.tensor([8]), torch.tensor([0]), torch.tensor([0]), torch.tensor([8]))
        expected = [by_the_definition(pooling, features[0], *span) for span in ((0, 8), (0, 4), (4, 8))]
    torch.testing.assert_close(pooled[0], torch.cat(expected), atol=1e-9, rtol=0)


def test_untrained_it_is_the_pyramid_fractional_edges_included():
    pooling, features = AttentionPooling(HIDDEN, (1, 2, 4), HEADS), frames(9, 5).float()
    spans = (
        torch.tensor([9, 5]),
        torch.tensor([0, 1, 0]),
        torch.tensor([0.0, 1.25, 3.3]),
        torch.tensor([9.0, 4.5, 3.4]),
    )
    torch.testing.assert_close(pooling(features, *spans), pool_pyramid(features, *spans, (1, 2, 4)), atol=1e-5, rtol=0)


def test_what_lies_behind_a_clip_is_neither_seen_nor_trained():
    pooling, features = trained(), frames(9, 5).requires_grad_()
    spans = (torch.tensor([9, 5]), torch.tensor([0, 1, 1]), torch.tensor([2, 0, 3]), torch.tensor([7, 5, 5]))
    pooled = pooling(features, *spans)
    changed = features.detach().clone()
    changed[1, 5:] = 1e3
    torch.testing.assert_close(pooling(changed, *spans), pooled.detach(), atol=1e-12, rtol=0)
    pooled.square().sum().backward()
    assert (features.grad[1, 5:] == 0).all()
    assert (features.grad[1, :5].abs().sum(-1) > 0).all()


def test_gradients_are_those_of_the_definition():
    pooling = trained((1,))
    features = frames(6).requires_grad_()
    span = (torch.tensor([6]), torch.tensor([0]), torch.tensor([1]), torch.tensor([5]))
    assert torch.autograd.gradcheck(lambda values: pooling(values, *span), features)


def test_light_frames_beside_heavy_ones_are_not_lost():
    """A window of frames that all score lowest, in 30 s of frames that score highest."""
    pooling = trained((1,), scale=1e3)
    features = frames(1500)
    light = (pooling.norm(features[0]) @ pooling.queries_AH.T).sum(-1).argmin()
    span = (torch.tensor([1500]), torch.tensor([0]), light[None], light[None] + 1)
    with torch.no_grad():
        torch.testing.assert_close(pooling(features, *span)[0], features[0, light], atol=1e-6, rtol=0)


def test_channels_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="4 heads of attention pooling cannot share 10 channels"):
        AttentionPooling(10, (1,))


@pytest.fixture
def model():
    tower = {"model_type": "whisper", "num_mel_bins": 16, "d_model": 8, "encoder_layers": 2}
    tower |= {"encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    windows = {"sizes": (20, 40), "stride": 10}
    config = TermRetrievalConfig(
        audio_tower=tower, text_tower="phonemes:characters", pooling="attention", windows=windows, audio_layers=2
    )
    torch.manual_seed(0)
    return TermRetrievalModel(config)


def test_a_model_with_attention_pooling_trains_every_parameter_and_comes_back(model, tmp_path):
    noise = torch.randint(-3000, 3000, (2, 20_000), dtype=torch.int16)
    model(pcm_BS=noise, num_samples_B=torch.tensor([20_000, 9_000])).audio_PD.cumsum(1).square().sum().backward()
    assert model.audio_pooling.queries_AH.grad.abs().sum() > 0
    with torch.no_grad():
        model.audio_pooling.queries_AH.normal_()
    model.save_pretrained(tmp_path)
    loaded = TermRetrievalModel.from_pretrained(tmp_path)
    clips = [noise[0].numpy(), noise[1, :9_000].numpy()]
    assert torch.equal(loaded.encode_audio(clips).vectors, model.encode_audio(clips).vectors)
    alone = model.encode_audio([clips[1]])
    number = int(alone.mask.sum())
    torch.testing.assert_close(
        model.encode_audio(clips).vectors[1, :number], alone.vectors[0, :number], atol=1e-5, rtol=0
    )


def test_another_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling must be one of pyramid, mean, attention, not 'max'"):
        TermRetrievalConfig(pooling="max")


def test_what_lies_behind_a_clip_reaches_no_gradient_even_where_it_is_not_a_number():
    pooling, features = trained(), frames(6, 3)
    features[1, 3:] = torch.nan
    features.requires_grad_()
    spans = (torch.tensor([0, 1]), torch.zeros(2), torch.tensor([6.0, 3.0]))
    pooling(features, torch.tensor([6, 3]), *spans).sum().backward()
    assert features.grad.isfinite().all()
    assert features.grad[1, :3].any()
    assert not features.grad[1, 3:].any()
    assert all(values.grad.isfinite().all() for values in pooling.parameters())


def test_a_clip_without_a_frame_is_pooled_to_zeros_as_by_the_pyramid():
    pooling, features = trained(), frames(6, 3)
    clips = (torch.tensor([6, 0]), torch.tensor([0, 1]), torch.zeros(2), torch.tensor([6.0, 0.0]))
    for pooled_P in (pooling(features, *clips), pool_pyramid(features, *clips, (1, 2))):
        assert pooled_P.isfinite().all()
        assert not pooled_P[1].any()
