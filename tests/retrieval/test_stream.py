import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval.errors import BadAudioError
from qwen_term_retrieval.models.spans.windows import window_grid
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.retrieval.stream import Chunker, RepeatMerger, live_pcm

SAMPLES_PER_FRAME = 4


def pieces(pcm, cuts):
    return np.split(pcm, sorted(cut % (len(pcm) + 1) for cut in cuts))


@settings(max_examples=150, deadline=None)
@given(
    num_frames=st.integers(1, 300),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True),
    stride=st.integers(1, 12),
    hop=st.integers(1, 60),
    margin=st.integers(1, 10),
    first_hop=st.none() | st.integers(1, 120),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_chunks_own_every_window_of_the_recording_exactly_once(num_frames, sizes, stride, hop, margin, first_hop, cuts):
    pcm = np.arange(num_frames * SAMPLES_PER_FRAME, dtype=np.int16)
    settings = {"longest_window": max(sizes), "stride": stride, "hop": hop, "margin": margin, "first_hop": first_hop}
    chunker = Chunker(samples_per_frame=SAMPLES_PER_FRAME, **settings)
    chunks = [chunk for piece in pieces(pcm, cuts) for chunk in chunker.feed(piece)] + list(chunker.finish())

    owned = []
    for chunk in chunks:
        np.testing.assert_array_equal(chunk.pcm, pcm[chunk.first_frame * SAMPLES_PER_FRAME :][: len(chunk.pcm)])
        _, start, end = window_grid([len(chunk.pcm) // SAMPLES_PER_FRAME], sizes, stride)
        starts, ends = start.numpy() + chunk.first_frame, end.numpy() + chunk.first_frame
        mine = (ends > chunk.owned_from) & (ends <= chunk.owned_to)
        owned += zip(starts[mine].tolist(), ends[mine].tolist(), strict=True)
    whole = Chunker(samples_per_frame=SAMPLES_PER_FRAME, **settings)
    at_once = [*whole.feed(pcm), *whole.finish()]
    assert [(c.first_frame, c.owned_to, c.pcm.tolist()) for c in at_once] == [
        (c.first_frame, c.owned_to, c.pcm.tolist()) for c in chunks
    ]
    _, start, end = window_grid([num_frames], sizes, stride)
    assert sorted(owned) == sorted(zip(start.tolist(), end.tolist(), strict=True))


@settings(max_examples=50, deadline=None)
@given(num_frames=st.integers(50, 300), cuts=st.lists(st.integers(0, 2000), max_size=12))
def test_every_owned_window_has_its_margin_of_context_where_the_recording_has_it(num_frames, cuts):
    size, stride, margin = 20, 5, 7
    chunker = Chunker(samples_per_frame=SAMPLES_PER_FRAME, longest_window=size, stride=stride, hop=15, margin=margin)
    pcm = np.zeros(num_frames * SAMPLES_PER_FRAME, np.int16)
    for chunk in [c for piece in pieces(pcm, cuts) for c in chunker.feed(piece)] + list(chunker.finish()):
        chunk_end = chunk.first_frame + len(chunk.pcm) // SAMPLES_PER_FRAME
        _, start, end = window_grid([chunk_end - chunk.first_frame], (size,), stride)
        for low, high in zip((start + chunk.first_frame).tolist(), (end + chunk.first_frame).tolist(), strict=True):
            if chunk.owned_from < high <= chunk.owned_to:
                assert low - chunk.first_frame >= min(margin, low)
                assert chunk_end - high >= min(margin, num_frames - high)


def test_a_long_recording_is_held_only_as_far_back_as_the_longest_window_reaches():
    chunker = Chunker(samples_per_frame=320, longest_window=100, stride=5, hop=50, margin=10)
    for _ in range(200):
        assert all(len(chunk.pcm) <= 320 * (100 + 50 + 2 * 10 + 5) for chunk in chunker.feed(np.ones(16_000, np.int16)))
    assert chunker._num_buffered < 320 * 300


def test_no_audio_gives_no_chunk():
    chunker = Chunker(samples_per_frame=4, longest_window=10, stride=1, hop=5, margin=1)
    assert [*chunker.feed(np.zeros(0, np.int16)), *chunker.finish()] == []
    with pytest.raises(ValueError, match="at least 1"):
        Chunker(samples_per_frame=4, longest_window=10, stride=0, hop=5, margin=1)


def match(score, start, end, term_id=1):
    return TermMatch(f"term {term_id}", score, start, end, term_id)


def test_overlapping_matches_of_a_term_are_one_and_the_best_gives_its_span():
    merger = RepeatMerger(hold=0.5)
    assert merger.add([match(0.5, 1.0, 1.6)], heard_to=1.8) == []
    assert merger.add([match(0.9, 1.1, 1.7)], heard_to=2.0) == []
    assert merger.add([match(0.6, 1.2, 1.9)], heard_to=2.5) == [match(0.9, 1.1, 1.7)]
    assert merger.add([match(0.95, 1.3, 2.0)], heard_to=3.0) == []  # it was told already
    assert merger.finish() == []


def test_a_term_said_twice_is_told_twice():
    merger = RepeatMerger(hold=0.5)
    first, second = match(0.9, 1.0, 1.5), match(0.7, 1.6, 2.1)
    told = merger.add([second, first], heard_to=2.2) + merger.finish()
    assert told == [first, second]


def test_different_terms_in_the_same_place_are_told_apart():
    merger = RepeatMerger(hold=0.0)
    both = [match(0.9, 1.0, 2.0, term_id=1), match(0.8, 1.4, 2.0, term_id=2)]
    assert merger.add(both, heard_to=2.0) == both


@settings(max_examples=100, deadline=None)
@given(starts=st.lists(st.integers(0, 60), min_size=1, max_size=20), hop=st.integers(1, 10))
def test_told_matches_of_a_term_never_overlap(starts, hop):
    merger = RepeatMerger(hold=0.5)
    told = []
    matches = [match(0.1 + (index * 7 % 10) / 10, start / 10, start / 10 + 0.8) for index, start in enumerate(starts)]
    for heard in range(0, 80, hop):
        ready = [m for m in matches if heard < m.end * 10 <= heard + hop]
        told += merger.add(ready, heard_to=(heard + hop) / 10)
    told += merger.finish()
    assert told
    assert not any(a.overlaps(b) for i, a in enumerate(told) for b in told[i + 1 :])


def test_live_audio_is_resampled_as_one_signal_however_it_arrives():
    time = np.arange(44_100 * 2) / 44_100
    stereo = np.stack([np.sin(2 * np.pi * 440 * time) * 0.4] * 2, axis=1).astype(np.float32)
    whole = np.concatenate(list(live_pcm([stereo], 44_100, 16_000)))
    blocks = np.array_split(stereo, [0, 10, 700, 701, 30_000, 60_000])
    assert whole.dtype == np.int16
    assert abs(len(whole) - 32_000) <= 1
    np.testing.assert_allclose(
        np.concatenate(list(live_pcm(blocks, 44_100, 16_000))), whole, atol=4
    )  # 16-bit soxr dithers


def test_nan_in_live_audio_is_refused():
    with pytest.raises(BadAudioError, match="NaN"):
        list(live_pcm([np.array([0.0, np.nan], np.float32)], 16_000, 16_000))
