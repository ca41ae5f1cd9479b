from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval import pad_pcm


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


def test_what_is_no_batch_is_refused():
    with pytest.raises(ValueError, match="at least one clip"):
        pad_pcm([])
    with pytest.raises(TypeError, match="clips must be int16"):
        pad_pcm([np.zeros(3, np.float32)])
