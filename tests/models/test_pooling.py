"""Spans pooled from one prefix sum equal the mean taken piece by piece."""

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.models import TermRetrievalConfig, TermRetrievalModel
from qwen_term_retrieval.models.spans.pooling import pool_pyramid, pool_runs
from qwen_term_retrieval.models.spans.windows import window_grid

SEGMENTS = (1, 2, 4)


def naive_mean(frames, start, end):
    """Mean of a step function between two points, frame by frame."""
    weights = [max(0.0, min(end, index + 1) - max(start, index)) for index in range(len(frames))]
    return np.average(frames, axis=0, weights=weights)


def naive_pyramid(frames, start, end, segments=SEGMENTS):
    parts = []
    for level in segments:
        edges = np.linspace(start, end, level + 1)
        parts += [naive_mean(frames, low, high) for low, high in itertools.pairwise(edges)]
    return np.concatenate(parts)


@st.composite
def clips_and_spans(draw):
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    spans = []
    for _ in range(draw(st.integers(1, 6))):
        clip = draw(st.integers(0, len(lengths) - 1))
        start = draw(st.floats(0, lengths[clip] - 1))
        spans.append((clip, start, draw(st.floats(start + 1, max(start + 1, lengths[clip])))))
    return lengths, spans, draw(st.integers(0, 2**31))


@settings(max_examples=100, deadline=None)
@given(clips_and_spans())
def test_every_span_equals_the_naive_mean_of_its_segments(case):
    lengths, spans, seed = case
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(lengths), max(lengths), 3, generator=generator, dtype=torch.float64) + 5
    clip = torch.tensor([index for index, _, _ in spans])
    start, end = torch.tensor([edges for _, *edges in spans], dtype=torch.float64).T
    pooled = pool_pyramid(features, torch.tensor(lengths), clip, start, end, SEGMENTS)
    for row, (index, low, high) in zip(pooled, spans, strict=True):
        frames = features[index, : lengths[index]].numpy()
        np.testing.assert_allclose(row.numpy(), naive_pyramid(frames, low, min(high, lengths[index])), atol=1e-9)


def test_frames_behind_a_clips_end_neither_count_nor_get_a_gradient():
    features = torch.randn(1, 6, 2, dtype=torch.float64)
    features[0, 4:] = float("nan")
    features.requires_grad_()
    pooled = pool_pyramid(features, torch.tensor([4]), torch.tensor([0]), torch.tensor([0.0]), torch.tensor([9.0]))
    np.testing.assert_allclose(pooled[0].detach(), naive_pyramid(features[0, :4].detach().numpy(), 0, 4))
    pooled.sum().backward()
    assert features.grad[0, :4].abs().min() > 0
    assert (features.grad[0, 4:] == 0).all()


def test_gradients_of_fractional_spans_are_those_of_finite_differences():
    features = torch.randn(2, 7, 2, dtype=torch.float64, requires_grad=True)
    clip, start, end = torch.tensor([0, 1, 1]), torch.tensor([0.3, 1.0, 2.2]), torch.tensor([5.9, 4.5, 3.4])
    assert torch.autograd.gradcheck(
        lambda values: pool_pyramid(values, torch.tensor([7, 5]), clip, start, end), (features,)
    )


def test_one_frame_at_the_end_of_30_s_keeps_its_digits():
    features = torch.randn(1, 1500, 8) * 3 + 40
    last = pool_pyramid(
        features, torch.tensor([1500]), torch.tensor([0]), torch.tensor([1499.0]), torch.tensor([1500.0])
    )
    torch.testing.assert_close(last[0, :8], features[0, -1], atol=2e-4, rtol=0)


def test_half_precision_frames_are_summed_in_single_precision():
    features = (torch.randn(1, 1500, 4) + 100).half()
    whole = torch.tensor([0]), torch.tensor([0.0]), torch.tensor([1500.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pool_pyramid(features, torch.tensor([1500]), *whole, segments=(1,))
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled[0], features[0].double().mean(0).float(), atol=1e-3, rtol=0)


def test_a_span_narrower_than_a_frame_or_outside_the_clip_is_moved_to_a_whole_frame():
    features = torch.arange(4.0).reshape(1, 4, 1)
    start, end = torch.tensor([1.5, 9.0, -3.0]), torch.tensor([1.5, 12.0, -2.0])
    pooled = pool_pyramid(features, torch.tensor([4]), torch.zeros(3, dtype=torch.int64), start, end, segments=(1,))
    np.testing.assert_allclose(pooled[:, 0], [1.0, 3.0, 0.0], atol=1e-6)


def test_order_matters():
    rising, falling = torch.arange(8.0).reshape(1, 8, 1), torch.arange(8.0).flip(0).reshape(1, 8, 1)
    whole = torch.tensor([8]), torch.tensor([0]), torch.tensor([0.0]), torch.tensor([8.0])
    pooled_rising, pooled_falling = pool_pyramid(rising, *whole), pool_pyramid(falling, *whole)
    assert pooled_rising[0, 0] == pooled_falling[0, 0]
    assert (pooled_rising[0, 1:] - pooled_falling[0, 1:]).abs().min() > 0.9


def grid(num_frames, sizes, stride):
    clip, start, end = window_grid([num_frames], sizes, stride)
    assert set(clip.tolist()) == {0}
    return list(zip(start.tolist(), end.tolist(), strict=True))


def test_without_windows_the_whole_clip_is_the_only_one():
    assert grid(17, None, None) == [(0, 17)]


def test_a_clip_no_longer_than_the_largest_window_is_also_searched_whole():
    assert grid(5, (2, 6), 2) == [(0, 2), (2, 4), (3, 5), (0, 5)]
    assert grid(6, (2, 6), 4) == [(0, 2), (4, 6), (0, 6)]
    assert grid(1, (2, 6), 2) == [(0, 1)]


@given(st.integers(1, 400), st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(1, 30))
def test_windows_lie_within_the_clip_are_distinct_and_cover_it(num_frames, sizes, stride):
    windows = grid(num_frames, tuple(sizes), stride)
    assert len(set(windows)) == len(windows)
    assert all(0 <= start < end <= num_frames for start, end in windows)
    if stride <= min(sizes):
        covered = {frame for start, end in windows for frame in range(int(start), int(end))}
        assert covered == set(range(num_frames))


def test_windows_come_clip_by_clip():
    clip, start, _ = window_grid(torch.tensor([4, 1, 3]), sizes=(2,), stride=2)
    assert clip.tolist() == [0, 0, 1, 2, 2]
    assert start.tolist() == [0, 2, 0, 0, 1]


def test_a_model_that_takes_the_mean_is_one_of_a_single_level():
    tower = {"model_type": "whisper", "num_mel_bins": 16, "d_model": 8, "encoder_layers": 1}
    tower |= {"encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    fields = {"audio_tower": tower, "text_tower": "phonemes:characters", "embedding_dim": 16}
    mean = TermRetrievalModel(TermRetrievalConfig(**fields, pooling="mean"))
    one_level = TermRetrievalModel(TermRetrievalConfig(**fields, segments=(1,)))
    one_level.load_state_dict(mean.state_dict())
    clip = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    torch.testing.assert_close(mean.encode_audio([clip]).vectors, one_level.encode_audio([clip]).vectors)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.sampled_from([(1, 2, 4), (1,), (3, 5)]))
@settings(deadline=None)
def test_whole_runs_are_pooled_as_spans_are(lengths, segments):
    length_R = torch.tensor(lengths)
    generator = torch.Generator().manual_seed(sum(lengths))
    frames_SH = torch.randn(sum(lengths), 8, dtype=torch.float64, generator=generator)
    pooled = pool_runs(frames_SH, length_R, segments)
    end_R = length_R.cumsum(0)
    one_clip = torch.zeros_like(length_R)
    spans = pool_pyramid(frames_SH[None], end_R[-1:], one_clip, end_R - length_R, end_R, segments)
    torch.testing.assert_close(pooled, spans, atol=1e-12, rtol=0)
