from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_term_retrieval import pad_pcm
from qwen_term_retrieval.audio.collate import PcmBuffers


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=8), min_size=1, max_size=4))
def test_a_batch_holds_each_clip_and_zeros_after_it_whatever_was_in_the_buffer(batches):
    buffers = PcmBuffers()
    for lengths in batches:
        clips = [np.arange(1, length + 1, dtype=np.int16) for length in lengths]
        pcm_BS, num_samples_B = pad_pcm(clips, buffers=buffers)
        assert pcm_BS.shape == (len(lengths), max(lengths))
        assert pcm_BS.dtype == torch.int16
        assert num_samples_B.tolist() == lengths
        for row, clip in zip(pcm_BS.tolist(), clips, strict=True):
            assert row == clip.tolist() + [0] * (max(lengths) - len(clip))


def test_memory_is_used_again_only_when_no_view_of_its_batch_is_left():
    buffers = PcmBuffers()
    clips = [np.ones(20, np.int16), np.ones(30, np.int16)]
    first, _ = pad_pcm(clips, buffers=buffers)
    address = first.data_ptr()
    kept = first[1, 5:]
    del first
    second, _ = pad_pcm([2 * clip for clip in clips], buffers=buffers)
    assert second.data_ptr() != address
    assert kept.tolist() == [1] * 25
    del kept
    third, _ = pad_pcm(clips, buffers=buffers)
    assert third.data_ptr() == address
    assert second[0].tolist() == [2] * 20 + [0] * 10


def test_batches_of_workers_do_not_run_into_each_other():
    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return np.full(5 + index % 3, index, np.int16)

    buffers = PcmBuffers()
    loader = torch.utils.data.DataLoader(
        Numbers(), batch_size=4, num_workers=2, collate_fn=lambda clips: pad_pcm(clips, buffers=buffers)
    )
    for number, (pcm_BS, _) in enumerate(list(loader)):
        assert pcm_BS[:, :5].tolist() == [[4 * number + clip] * 5 for clip in range(4)]


def test_what_is_no_batch_is_refused():
    with pytest.raises(ValueError, match="at least one clip"):
        pad_pcm([])
    with pytest.raises(TypeError, match="clips must be int16"):
        pad_pcm([np.zeros(3, np.float32)])
