from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval import clip_views, pack_corpus, pad_pcm


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 400))
def test_a_batch_holds_each_clip_and_zeros_after_it_whatever_was_in_the_buffer(lengths, buffer_size):
    clips = [np.arange(1, length + 1, dtype=np.int16) for length in lengths]
    pcm_BS, num_samples_B = pad_pcm(clips, buffer=torch.full((buffer_size,), -7, dtype=torch.int16))
    assert pcm_BS.shape == (len(lengths), max(lengths))
    assert pcm_BS.dtype == torch.int16
    assert num_samples_B.tolist() == lengths
    for row, clip in zip(pcm_BS.tolist(), clips, strict=True):
        assert row == clip.tolist() + [0] * (max(lengths) - len(clip))


def test_a_buffer_that_is_large_enough_is_used_again():
    buffer = torch.empty(100, dtype=torch.int16)
    pcm_BS, _ = pad_pcm([np.ones(20, np.int16), np.ones(30, np.int16)], buffer=buffer)
    assert pcm_BS.data_ptr() == buffer.data_ptr()


def test_views_of_an_arrow_column_equal_decoded_rows(corpus, tmp_path):
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    rows = load_dataset(str(tmp_path / "pack"), split="train").select([3, 0, 5])
    views = clip_views(rows.with_format("arrow")[:]["audio"])
    for view, clip in zip(views, rows["audio"], strict=True):
        np.testing.assert_array_equal(view, clip.pcm)
        assert np.shares_memory(view, clip.pcm)
    from_views, from_clips = pad_pcm(views), pad_pcm(list(rows["audio"]))
    assert torch.equal(from_views[0], from_clips[0])


def test_what_is_no_batch_is_refused(corpus, tmp_path):
    with pytest.raises(ValueError, match="at least one clip"):
        pad_pcm([])
    with pytest.raises(TypeError, match="clips must be int16"):
        pad_pcm([np.zeros(3, np.float32)])
    pack_corpus(corpus, tmp_path / "pack", num_workers=1, quiet=True)
    rows = load_dataset(str(tmp_path / "pack"), split="train").map(
        lambda row, i: {"audio": None if i else row["audio"]}, with_indices=True
    )
    with pytest.raises(ValueError, match="5 of 6 rows have no audio"):
        clip_views(rows.with_format("arrow")[:]["audio"])
