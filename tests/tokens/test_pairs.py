"""Pairs by number: cut by tokens when they are read, never losing their end; and the dataset of every offset."""

import itertools
import pickle
import shutil

import numpy as np
import psutil
import pytest
import tokenizers
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from benchmarks.text_pretraining.sparse_pack import make_sparse_pack
from qwen_term_retrieval import LargeTokenDataset, MmapPairs, pack_tokens
from qwen_term_retrieval.errors import PackError
from qwen_term_retrieval.pretraining.text.order import MicroBatch, PairOrder
from qwen_term_retrieval.tokens.mmap_pairs import pack_pairs
from qwen_term_retrieval.tokens.token_pack import HEADER_BYTES
from tests.doubles.token_corpus import QUIET, texts, train_bpe, write_jsonl

PROMPTS, RESPONSES = texts(60), texts(60, seed=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    backend = tokenizers.Tokenizer.from_file(str(train_bpe(tmp_path_factory.mktemp("bpe") / "tokenizer.json")))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<sep>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("pairs")
    rows = [{"prompt": prompt, "response": response} for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    source = write_jsonl(place / "pairs.jsonl", rows)
    # Shards of some thousand tokens, so that pairs lie across them.
    pack_pairs(source, place / "pack", tokenizer, shard_bytes=HEADER_BYTES + 4096, **QUIET)
    return place / "pack"


def ids_of(tokenizer, text, limit):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids[: limit - 1], tokenizer.eos_token_id]


@pytest.mark.parametrize("limit", [2, 16, 128, 192, 100_000])
def test_one_pack_serves_every_limit_and_what_is_cut_keeps_its_end_token(folder, tokenizer, limit):
    pairs = MmapPairs(folder, limit)
    order = np.random.default_rng(0).permutation(len(pairs))
    batch = pairs.batch(order)
    for row, number in enumerate(order):
        prompt = batch.prompt_BS[row, : batch.prompt_lengths_B[row]].tolist()
        response = batch.response_BT[row, : batch.response_lengths_B[row]].tolist()
        assert prompt == ids_of(tokenizer, PROMPTS[number], limit)
        assert response == ids_of(tokenizer, RESPONSES[number], limit)
        assert (batch.response_BT[row, batch.response_lengths_B[row] :] == tokenizer.pad_token_id).all()
    for lengths, expected in zip(pairs.lengths(order), (batch.prompt_lengths_B, batch.response_lengths_B), strict=True):
        assert lengths.tolist() == expected.tolist()
    assert batch.prompt_BS.shape[1] == batch.prompt_lengths_B.max()


def test_pairs_go_to_another_process_as_a_path(folder):
    pairs = MmapPairs(folder, 16)
    assert len(pickle.dumps(pairs)) < 1000
    assert (pickle.loads(pickle.dumps(pairs)).batch([7]).response_BT == pairs.batch([7]).response_BT).all()


def test_other_pairs_have_another_identity_and_a_copy_the_same(folder, tmp_path, tokenizer):
    shutil.copytree(folder, tmp_path / "copy")
    assert MmapPairs(tmp_path / "copy", 16).identity() == MmapPairs(folder, 128).identity()
    source = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a", "response": "b"}] * 60)
    pack_pairs(source, tmp_path / "pack", tokenizer, **QUIET)
    assert MmapPairs(tmp_path / "pack", 16).identity() != MmapPairs(folder, 16).identity()


def test_what_holds_no_pairs_is_refused_with_the_remedy(folder, tmp_path, tokenizer):
    source = write_jsonl(tmp_path / "texts.jsonl", [{"text": "a b"}])
    pack_tokens(source, tmp_path / "texts", tokenizer, **QUIET)
    with pytest.raises(PackError, match=r"none of pairs with end tokens; make one with `pack_pairs`"):
        MmapPairs(tmp_path / "texts", 16)
    with pytest.raises(ValueError, match="max_seq_len=1"):
        MmapPairs(folder, 1)
    pairs = MmapPairs(folder, 16)
    with pytest.raises(IndexError, match="has 60 pairs"):
        pairs.batch([60])


@pytest.fixture(scope="module")
def ten_million(tmp_path_factory):
    return make_sparse_pack(tmp_path_factory.mktemp("sparse") / "many", 10_000_000)


def test_ten_million_pairs_open_at_once_and_take_no_memory(ten_million):
    before = psutil.Process().memory_info().rss
    pairs = MmapPairs(ten_million, 16)
    batch = pairs.batch(np.random.default_rng(0).integers(0, len(pairs), 32))
    assert len(pairs) == 10_000_000
    assert batch.prompt_BS.shape == (32, 16)
    # A look at all bounds and ids would bring 800 MB into memory; a page that is touched brings up to 2 MB with it.
    assert psutil.Process().memory_info().rss - before < 150e6


def test_pages_of_many_pairs_do_not_gather_in_a_process(ten_million):
    """Two hundred batches from all over 800 MB; without letting go they leave some 300 MB of it in this process."""
    pairs = MmapPairs(ten_million, 192)
    order = PairOrder(pairs, 32, seed=0)
    before = psutil.Process().memory_info().rss
    for number in range(200):
        batch = pairs.batch(order.batch(MicroBatch(0, number)))
    assert batch.response_BT.shape[0] == 32
    assert psutil.Process().memory_info().rss - before < 50e6


def test_every_offset_of_a_file_is_a_window_as_lectures_have_it(tmp_path):
    ids = np.random.default_rng(0).integers(0, 60_000, 1000).astype("<u2")
    ids.tofile(tmp_path / "train.bin")
    dataset = LargeTokenDataset(tmp_path / "train.bin", 64)
    assert len(dataset) == 1000 - 64
    x, y = dataset[17]
    assert x.dtype == y.dtype == torch.int64
    assert x.tolist() == ids[17:81].tolist()
    assert y.tolist() == ids[18:82].tolist()
    loader = DataLoader(dataset, batch_size=32, num_workers=1, shuffle=True)
    seen = [tuple(row) for x_BS, _ in loader for row in x_BS.tolist()]
    assert sorted(seen) == sorted(tuple(ids[start : start + 64].tolist()) for start in range(936))


def test_a_file_of_two_terabytes_opens_at_once_and_its_order_takes_no_memory(tmp_path):
    path = tmp_path / "train.bin"
    with path.open("wb") as file:
        file.truncate(2 << 40)
    before = psutil.Process().memory_info().rss
    dataset = LargeTokenDataset(path, 1024)
    assert len(dataset) == (1 << 40) - 1024
    drawn = list(itertools.islice(dataset.sampler(seed=0), 100))
    assert dataset[drawn][0].shape == (100, 1024)
    assert max(drawn) > 1 << 39
    assert psutil.Process().memory_info().rss - before < 300e6  # a page that is touched brings up to 2 MB with it


def test_every_offset_of_a_pack_too(folder):
    dataset = LargeTokenDataset(folder, 8)
    assert len(dataset) == dataset.num_tokens - 8
    assert pickle.loads(pickle.dumps(dataset))[5][0].tolist() == dataset[5][0].tolist()
