from __future__ import annotations

import multiprocessing
import pickle
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader

from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.tokens import document_windows
from qwen_term_retrieval.tokens.document_windows import DocumentWindows
from qwen_term_retrieval.tokens.mmap_tokens import IGNORED_LABEL, MmapTokens
from qwen_term_retrieval.tokens.stream import TokenStream
from qwen_term_retrieval.tokens.token_pack import HEADER_BYTES, TokenShardHeader
from qwen_term_retrieval.tokens.window_order import WindowOrder, WindowSampler

HUNDRED_GB = 100 * 10**9


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A bare file of ids, and the ids."""
    ids = np.random.default_rng(0).integers(0, 60_000, 5000).astype("<u2")
    path = tmp_path_factory.mktemp("stream") / "ids.bin"
    ids.tofile(path)
    return path, ids


@settings(deadline=None)
@given(length=st.integers(1, 400), stride=st.integers(1, 500))
def test_windows_tile_the_stream_and_labels_are_one_token_ahead(stream, length, stride):
    path, ids = stream
    tokens = MmapTokens(path, length, stride=stride, dtype="uint16", output="numpy")
    x_BS, y_BS = tokens[np.arange(len(tokens))]
    for number, (x_S, y_S) in enumerate(zip(x_BS, y_BS, strict=True)):
        np.testing.assert_array_equal(x_S, ids[number * stride : number * stride + length])
        np.testing.assert_array_equal(y_S, ids[number * stride + 1 : number * stride + 1 + length])
    assert len(ids) - 1 - length - stride < (len(tokens) - 1) * stride <= len(ids) - 1 - length


def test_windows_without_a_stride_hold_each_token_once_up_to_the_last_whole_window(stream):
    path, ids = stream
    tokens = MmapTokens(path, 64, dtype="uint16", output="numpy")
    np.testing.assert_array_equal(tokens[range(len(tokens))][0].ravel(), ids[: len(ids) - 1 - (len(ids) - 1) % 64])


def test_a_window_starts_at_any_offset(stream):
    path, ids = stream
    tokens = MmapTokens(path, 100, dtype="uint16")
    for offset in (0, 1, 37, 4899):
        x_S, y_S = tokens.window(offset)
        assert (x_S.dtype, y_S.dtype) == (torch.int64, torch.int64)
        np.testing.assert_array_equal(x_S, ids[offset : offset + 100])
        np.testing.assert_array_equal(y_S, ids[offset + 1 : offset + 101])
    for offset in (-1, 4900):
        with pytest.raises(IndexError, match="start at offsets 0 to 4899"):
            tokens.window(offset)


@settings(deadline=None)
@given(
    num_tokens=st.integers(1, 300),
    shard_tokens=st.integers(1, 300),
    width=st.integers(1, 120),
    starts=st.lists(st.integers(0, 299), min_size=1, max_size=8),
)
def test_reading_does_not_depend_on_where_the_stream_is_cut_into_shards(
    tmp_path_factory, num_tokens, shard_tokens, width, starts
):
    folder = tmp_path_factory.mktemp("shards")
    ids = np.arange(1, num_tokens + 1, dtype="<u4")
    paths = []
    for first in range(0, num_tokens, shard_tokens):
        paths.append(folder / f"{first}.bin")
        paths[-1].write_bytes(bytes(16) + ids[first : first + shard_tokens].tobytes())
    stream = TokenStream(paths, ids.dtype, num_tokens, shard_tokens, 16)
    start_B = np.array(starts) % num_tokens
    endless = np.concatenate([ids, np.zeros(width, ids.dtype)])
    np.testing.assert_array_equal(stream.rows(start_B, width), endless[start_B[:, None] + np.arange(width)])


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=400), sequence_length=st.integers(1, 50))
def test_windows_of_documents_start_with_them_and_predict_each_later_token_once(lengths, sequence_length):
    starts = np.concatenate([[0], np.cumsum(lengths)])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(document_windows, "_DOCUMENTS_AT_ONCE", 128)
        windows = DocumentWindows(starts, sequence_length)
    start_B, num_next_B = windows.locate(np.arange(len(windows)))
    predicted = [start + 1 + i for start, count in zip(start_B, num_next_B, strict=True) for i in range(count)]
    assert predicted == sorted(set(range(starts[-1])) - set(starts[:-1].tolist()))
    assert num_next_B.min(initial=1) >= 1
    assert num_next_B.max(initial=0) <= sequence_length
    first_windows = [start for start, length in zip(starts, lengths, strict=False) if length > 1]
    assert set(first_windows) <= set(start_B.tolist())


@settings(deadline=None)
@given(count=st.integers(1, 3000), seed=st.integers(0, 2**64), epoch=st.integers(0, 1000))
def test_the_order_of_an_epoch_is_a_permutation_that_can_be_read_at_any_position(count, seed, epoch):
    order = WindowOrder(count, seed, epoch)
    windows = order[np.arange(count)]
    assert sorted(windows.tolist()) == list(range(count))
    position = seed % count
    assert order[np.array([position])] == windows[position]


def test_an_order_of_ten_to_the_fifteen_windows_costs_nothing_to_make_and_repeats_none():
    windows = WindowOrder(10**15, seed=0)[np.arange(100_000)]
    assert len(set(windows.tolist())) == 100_000
    assert 0 <= windows.min() < 10**12
    assert 10**15 - 10**12 < windows.max() < 10**15
    assert abs(np.corrcoef(windows[:-1], windows[1:])[0, 1]) < 0.02


def test_every_order_of_four_windows_comes_up_about_equally_often():
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(4800):
        order = tuple(WindowOrder(4, seed)[np.arange(4)].tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    # 200 expected, standard deviation 14.
    assert min(counts.values()) > 130
    assert max(counts.values()) < 270


@settings(deadline=None)
@given(count=st.integers(8, 500), ranks=st.integers(1, 8), steps=st.integers(0, 500), seed=st.integers(0, 99))
def test_ranks_share_an_epoch_equally_and_one_integer_resumes_it(count, ranks, steps, seed):
    samplers = [WindowSampler(count, seed=seed, rank=rank, num_ranks=ranks) for rank in range(ranks)]
    whole = [list(sampler) for sampler in samplers]
    assert {len(windows) for windows in whole} == {count // ranks} == {len(sampler) for sampler in samplers}
    one_rank = list(WindowSampler(count, seed=seed))
    assert [window for step in zip(*whole, strict=True) for window in step] == one_rank[: count // ranks * ranks]
    steps = min(steps, count // ranks)
    for sampler, windows in zip(samplers, whole, strict=True):
        sampler.set_epoch(0, position=steps * ranks)
        assert list(sampler) == windows[steps:]


def test_epochs_and_seeds_differ_and_repeat():
    sampler = WindowSampler(1000, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first != second != list(WindowSampler(1000, seed=4))
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(WindowSampler(1000, shuffle=False)) == list(range(1000))


def test_a_sampler_of_wrong_ranks_or_positions_is_refused():
    with pytest.raises(ValueError, match="ranks count from 0"):
        WindowSampler(10, rank=2, num_ranks=2)
    with pytest.raises(ValueError, match="3 windows cannot be shared over 4 ranks"):
        WindowSampler(3, num_ranks=4)
    with pytest.raises(ValueError, match="position=11; an epoch has 10"):
        WindowSampler(10).set_epoch(0, position=11)
    with pytest.raises(ValueError, match="at least one window"):
        WindowOrder(0, seed=0)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_data_loader_workers_read_what_this_process_reads(stream, start_method):
    tokens = MmapTokens(stream[0], 50, dtype="uint16")
    sampler = tokens.sampler(seed=1)
    context = multiprocessing.get_context(start_method)
    by_window = DataLoader(tokens, batch_size=8, sampler=sampler, num_workers=2, multiprocessing_context=context)
    batches = BatchSampler(sampler, batch_size=8, drop_last=False)
    by_batch = DataLoader(tokens, batch_size=None, sampler=batches, num_workers=2, multiprocessing_context=context)
    order = list(sampler)
    for loader in (by_window, by_batch) if start_method == "fork" else (by_batch,):
        loaded = list(loader)
        assert len(loaded) == -(-len(tokens) // 8)
        for number, (x_BS, y_BS) in enumerate(loaded):
            expected_x, expected_y = tokens[order[number * 8 : number * 8 + 8]]
            assert torch.equal(x_BS, expected_x)
            assert torch.equal(y_BS, expected_y)


def test_a_batch_goes_into_the_arrays_of_the_last_one(stream):
    tokens = MmapTokens(stream[0], 50, dtype="uint16")
    out = tokens.batch([0, 1, 2])
    again = tokens.batch([5, 6, 7], out=out)
    assert again[0] is out[0]
    assert torch.equal(out[0], tokens[[5, 6, 7]][0])
    with pytest.raises(ValueError, match=r"must be two of \(2, 50\)"):
        tokens.batch([5, 6], out=out)


def test_inputs_do_not_change_when_labels_are_masked(stream):
    x_BS, y_BS = MmapTokens(stream[0], 50, dtype="uint16")[[0, 1]]
    before = x_BS.clone()
    y_BS[:] = IGNORED_LABEL
    assert torch.equal(x_BS, before)


def test_indices_count_from_the_end_and_stop_at_it(stream):
    tokens = MmapTokens(stream[0], 50, dtype="uint16")
    assert torch.equal(tokens[-1][0], tokens[len(tokens) - 1][0])
    assert torch.equal(tokens[torch.tensor([1, 2])][0], tokens[[1, 2]][0])
    assert sum(1 for _ in tokens) == len(tokens) == 99
    for index in (99, -100, [0, 99]):
        with pytest.raises(IndexError, match="has 99 windows"):
            tokens[index]


def test_settings_that_make_no_sense_are_refused(stream, tmp_path):
    path, _ = stream
    for arguments, message in [
        ({"sequence_length": 0}, "must be positive"),
        ({"sequence_length": 8, "stride": 0}, "must be positive"),
        ({"sequence_length": 8, "aligned": "row"}, "must be False or 'document'"),
        ({"sequence_length": 8, "aligned": "document", "stride": 2}, "leave it out"),
        ({"sequence_length": 8, "aligned": "document"}, "without documents"),
        ({"sequence_length": 8, "output": "jax"}, "'torch' or 'numpy'"),
        ({"sequence_length": 8, "dtype": "int8"}, "one of uint16, uint32"),
        ({"sequence_length": 5000}, "5000 tokens, not enough for one window of 5000"),
    ]:
        with pytest.raises(ValueError, match=message):
            MmapTokens(path, **{"dtype": "uint16", **arguments})
    with pytest.raises(PackError, match="not a shard of tokens"):
        MmapTokens(path, 8)
    (tmp_path / "odd.bin").write_bytes(bytes(3))
    with pytest.raises(PackError, match="no whole number of uint16"):
        MmapTokens(tmp_path / "odd.bin", 1, dtype="uint16")
    with pytest.raises(PackError, match="missing"):
        MmapTokens(tmp_path / "gone.bin", 1)


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("stride", [None, 1])
def test_a_hundred_gigabytes_open_and_read_in_no_memory(tmp_path, stride):
    path = tmp_path / "tokens_00000.bin"
    num_tokens = HUNDRED_GB // 2
    with path.open("wb") as file:
        file.write(TokenShardHeader("uint16", num_tokens, 0).to_bytes())
        file.truncate(HEADER_BYTES + 2 * num_tokens)
        file.seek(HEADER_BYTES + 2 * num_tokens - 4)
        file.write(np.array([7, 8], "<u2").tobytes())
    MmapTokens(path, 1024)[0]  # imports, buffers
    before = rss_bytes()
    tokens = MmapTokens(path, 1024, stride=stride)
    assert len(tokens) == (num_tokens - 1025) // (stride or 1024) + 1
    assert tokens.window(num_tokens - 1025)[0][-1] == 7
    assert tokens.window(num_tokens - 1025)[1][-1] == 8
    sampler = iter(tokens.sampler(seed=0))
    for _ in range(20):
        x_BS, _ = tokens[[next(sampler) for _ in range(8)]]
        assert x_BS.shape == (8, 1024)
    assert len(tokens[-1][0]) == len(tokens[0][0]) == 1024
    # 160 windows bring a map's pages in, 64 KiB around each where the file system is so minded.
    assert rss_bytes() - before < 24 << 20
    assert len(pickle.dumps(tokens)) < 1000
