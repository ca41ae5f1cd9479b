from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from pyarrow import parquet
from transformers import AutoTokenizer

from qwen_term_retrieval.errors import CorpusError, PackError
from qwen_term_retrieval.models.weights.checkpoints import resolve_checkpoint
from qwen_term_retrieval.tokens import packing as token_packing
from qwen_term_retrieval.tokens import parts as token_parts
from qwen_term_retrieval.tokens.mmap_tokens import IGNORED_LABEL, MmapTokens
from qwen_term_retrieval.tokens.packing import pack_tokens
from qwen_term_retrieval.tokens.token_pack import TokenPack
from qwen_term_retrieval.workers import MapExecutor
from tests.doubles.token_corpus import QUIET, contents, ids_of, texts, train_bpe, write_jsonl, write_texts


@pytest.fixture(scope="module")
def minilm() -> Path:
    return resolve_checkpoint("sentence-transformers/all-MiniLM-L6-v2", ())


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> Path:
    return train_bpe(tmp_path_factory.mktemp("bpe") / "tokenizer.json")


def test_the_ids_of_every_document_are_its_tokenizers_uncut_and_end_with_sep_where_there_is_no_eos(minilm, tmp_path):
    documents = [*texts(30), "Ünïcode 你好 🙂\n\ttabs", "x" * 5000, "many words " * 2000]
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    summary = pack_tokens(write_texts(tmp_path / "a.jsonl", documents), tmp_path / "out", minilm, **QUIET)
    tokens = MmapTokens(tmp_path / "out", 16)
    expected = [[*tokenizer(text, add_special_tokens=False)["input_ids"], 102] for text in documents]
    assert ids_of(tokens) == expected
    assert len(expected[-1]) == 4001
    assert summary.num_tokens == tokens.num_tokens == sum(map(len, expected))
    assert (summary.dtype, summary.num_documents, summary.num_shards) == ("uint16", 33, 1)
    assert "33 documents in 1 shards of uint16" in str(summary)
    assert tokens.tokenizer().decode(expected[30], skip_special_tokens=False).endswith("[UNK] tabs [SEP]")


def test_prompt_and_response_are_one_document_whose_columns_are_known(bpe, tmp_path):
    pairs = list(zip(texts(20), texts(20, seed=1), strict=True))
    table = pa.table({"id": range(20), "prompt": [p for p, _ in pairs], "response": [r for _, r in pairs]})
    parquet.write_table(table, tmp_path / "pairs.parquet")
    pack_tokens(tmp_path / "pairs.parquet", tmp_path / "out", bpe, eos="<end>", separator="<sep>", **QUIET)
    tokenizer = tokenizers.Tokenizer.from_file(str(bpe))
    tokens = MmapTokens(tmp_path / "out", 8)
    for number, (prompt, response) in enumerate(pairs):
        document = tokens.document(number)
        assert document["prompt"].tolist() == [*tokenizer.encode(prompt).ids, 1]
        assert document["response"].tolist() == [*tokenizer.encode(response).ids, 0]
    for number in (-1, 20):
        with pytest.raises(IndexError, match="has 20 documents"):
            tokens.document(number)


def test_windows_aligned_to_documents_are_padded_and_never_reach_into_the_next(bpe, tmp_path):
    documents = [*texts(40), "a"]
    pack_tokens(write_texts(tmp_path / "a.jsonl", documents), tmp_path / "out", bpe, eos="<end>", **QUIET)
    tokens = MmapTokens(tmp_path / "out", 8, aligned="document", pad_id=999, output="numpy")
    x_BS, y_BS = tokens[range(len(tokens))]
    assert x_BS.dtype == y_BS.dtype == np.int32
    np.testing.assert_array_equal(x_BS == 999, y_BS == IGNORED_LABEL)
    number = 0
    for ids in ids_of(tokens):
        num_windows = -(-(len(ids) - 1) // 8)
        window = slice(number, number + num_windows)
        assert x_BS[window][x_BS[window] != 999].tolist() == ids[:-1]
        assert y_BS[window][y_BS[window] != IGNORED_LABEL].tolist() == ids[1:]
        number += num_windows
    assert number == len(tokens)


def test_folders_lists_and_compressed_files_give_the_documents_in_the_order_of_paths(bpe, tmp_path):
    documents = texts(12)
    (tmp_path / "in" / "b").mkdir(parents=True)
    write_texts(tmp_path / "in" / "a.jsonl", documents[:3])
    parquet.write_table(pa.table({"text": documents[3:6]}), tmp_path / "in" / "b" / "0.parquet")
    write_texts(tmp_path / "in" / "b" / "1.jsonl.gz", documents[6:9])
    (tmp_path / "in" / "notes.txt").write_text("not ours")
    (tmp_path / "in" / "._a.jsonl").write_bytes(b"\0\5")
    (tmp_path / "in" / "c.jsonl").write_text("\n" + json.dumps({"text": documents[9]}) + "\n\n")
    dictionary = pa.table({"text": pa.array(documents[10:]).dictionary_encode()})
    parquet.write_table(dictionary, tmp_path / "in" / "d.parquet")
    pack_tokens(tmp_path / "in", tmp_path / "folder", bpe, eos=None, **QUIET)
    expected = [e.ids for e in tokenizers.Tokenizer.from_file(str(bpe)).encode_batch(documents)]
    assert ids_of(MmapTokens(tmp_path / "folder", 8)) == expected
    pack_tokens([tmp_path / "in" / "d.parquet", tmp_path / "in" / "b"], tmp_path / "list", bpe, eos=None, **QUIET)
    assert ids_of(MmapTokens(tmp_path / "list", 8)) == expected[10:] + expected[3:9]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Texts for a few parts."""
    return write_texts(tmp_path_factory.mktemp("corpus") / "a.jsonl", texts(1500, seed=5))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(token_packing, "_CHARS_PER_PART", 20_000)


def test_the_bytes_do_not_depend_on_the_workers_nor_the_size_of_parts(corpus, bpe, tmp_path, small_parts, monkeypatch):
    settings = {"eos": "<end>", "shard_bytes": 70_000, "quiet": True}
    pack_tokens(corpus, tmp_path / "here", bpe, num_workers=1, **settings)
    pack_tokens(corpus, tmp_path / "processes", tokenizers.Tokenizer.from_file(str(bpe)), num_workers=2, **settings)
    with ThreadPoolExecutor(3) as executor:
        pack_tokens(corpus, tmp_path / "threads", bpe, executor=executor, **settings)
    mapped = MapExecutor(lambda jobs: map(token_parts.make_token_part, jobs), num_jobs=2)
    pack_tokens(corpus, tmp_path / "map", bpe, executor=mapped, **settings)
    monkeypatch.setattr(token_packing, "_CHARS_PER_PART", 1 << 20)
    pack_tokens(corpus, tmp_path / "large", bpe, num_workers=1, **settings)
    expected = contents(tmp_path / "here")
    assert sum(name.endswith(".bin") for name in expected) > 2
    assert {len(data) for name, data in expected.items() if name.endswith(".bin")} - {70_000} != set()
    assert contents(tmp_path / "large") == contents(tmp_path / "threads") == contents(tmp_path / "map") == expected
    unnamed = contents(tmp_path / "processes")
    assert {name for name in expected if unnamed[name] != expected[name]} == {"tokens.json"}


PACK_SCRIPT = """
import sys
from qwen_term_retrieval.tokens import packing
packing._CHARS_PER_PART = 20_000
print("ready", flush=True)
packing.pack_tokens(
    sys.argv[1], sys.argv[2], sys.argv[3], eos="<end>", shard_bytes=70_000, num_workers=2, quiet=True
)
"""


def test_packing_killed_at_random_instants_goes_on_to_the_same_bytes(corpus, bpe, tmp_path, small_parts):
    pack_tokens(corpus, tmp_path / "whole", bpe, eos="<end>", shard_bytes=70_000, **QUIET)
    out, rng, num_kills = tmp_path / "out", random.Random(3), 0
    command = [sys.executable, "-c", PACK_SCRIPT, str(corpus), str(out), str(bpe)]
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        num_kills += process.wait() != 0
        process.stdout.close()
        if out.exists():
            break
    assert num_kills
    if not out.exists():
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert contents(out) == contents(tmp_path / "whole")


class Crash(Exception):  # noqa: N818
    pass


def crash(*args, **kwargs):
    raise Crash


@pytest.mark.parametrize("step", ["seal_token_shards", "write_documents", "_finish", "publish"])
def test_packing_goes_on_after_a_crash_at_any_step(corpus, bpe, tmp_path, small_parts, monkeypatch, step):
    settings = {"eos": "<end>", "shard_bytes": 70_000, **QUIET}
    pack_tokens(corpus, tmp_path / "whole", bpe, **settings)
    with monkeypatch.context() as patched:
        patched.setattr(token_packing, step, crash)
        with pytest.raises(Crash):
            pack_tokens(corpus, tmp_path / "out", bpe, **settings)
    assert not (tmp_path / "out").exists()
    # What is finished is not made again.
    monkeypatch.setattr(token_parts, "_write_part", crash)
    pack_tokens(corpus, tmp_path / "out", bpe, **settings)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out.incomplete").exists()


def test_shards_sealed_before_a_crash_are_kept_and_other_settings_do_not_take_them(
    corpus, bpe, tmp_path, small_parts, monkeypatch
):
    settings = {"eos": "<end>", "shard_bytes": 70_000, **QUIET}
    with monkeypatch.context() as patched:
        patched.setattr(token_packing, "write_documents", crash)
        with pytest.raises(Crash):
            pack_tokens(corpus, tmp_path / "out", bpe, **settings)
    staging = tmp_path / "out.incomplete"
    sealed = next(staging.glob("tokens-*")) / "tokens_00000.bin"
    written = sealed.stat().st_mtime_ns
    assert not (staging / "parts" / "part_0000000.bin").exists()
    copied = shutil.copytree(staging, tmp_path / "other.incomplete")
    with pytest.raises(PackError, match=r"another corpus or other settings. Delete .*other.incomplete and pack again"):
        pack_tokens(corpus, tmp_path / "other", bpe, **settings | {"shard_bytes": 50_000})
    shutil.rmtree(copied)
    pack_tokens(corpus, tmp_path / "out", bpe, **settings)
    assert (tmp_path / "out" / "tokens_00000.bin").stat().st_mtime_ns == written


def test_after_a_bad_row_is_mended_only_its_part_is_made_again(corpus, bpe, tmp_path, small_parts, monkeypatch):
    lines = corpus.read_text().splitlines()
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join([*lines[:-1], '{"text": 5}']))
    with pytest.raises(CorpusError, match=r"a.jsonl, row 1500: column 'text' holds '5', which is not text"):
        pack_tokens(source, tmp_path / "out", bpe, eos="<end>", **QUIET)
    num_parts = len(list((tmp_path / "out.incomplete" / "parts").glob("*.npz")))
    source.write_text("\n".join(lines))
    made, write_part = [], token_parts._write_part
    monkeypatch.setattr(token_parts, "_write_part", lambda job, sign: made.append(job.number) or write_part(job, sign))
    pack_tokens(source, tmp_path / "out", bpe, eos="<end>", **QUIET)
    assert num_parts > 5
    assert made == [num_parts]


@pytest.mark.parametrize("spoil", [lambda data: data[:-2], lambda data: bytes(len(data)), lambda data: b""])
@pytest.mark.parametrize("suffix", ["bin", "npz"])
def test_a_part_that_a_power_cut_spoiled_is_made_again(corpus, bpe, tmp_path, small_parts, monkeypatch, suffix, spoil):
    with monkeypatch.context() as patched:
        patched.setattr(token_packing, "sealing_folder", crash)
        with pytest.raises(Crash):
            pack_tokens(corpus, tmp_path / "out", bpe, eos="<end>", **QUIET)
    part = tmp_path / "out.incomplete" / "parts" / f"part_0000002.{suffix}"
    part.write_bytes(spoil(part.read_bytes()))
    pack_tokens(corpus, tmp_path / "out", bpe, eos="<end>", **QUIET)
    pack_tokens(corpus, tmp_path / "whole", bpe, eos="<end>", **QUIET)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_empty_documents_are_left_out_counted_and_reported(bpe, tmp_path, caplog):
    rows = [{"text": "one"}, {"text": None}, {"text": ""}, {"text": "two"}, {"text": None}]
    summary = pack_tokens(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", bpe, eos="<end>", **QUIET)
    assert (summary.num_documents, summary.num_empty) == (2, 3)
    assert "3 documents have no text in one of the columns text; left out" in caplog.text
    assert "3 empty documents were left out" in str(summary)
    pack = TokenPack.open(tmp_path / "out")
    assert pack.content["num_empty"] == 3
    assert "2 documents" in pack.inspect()
    with pytest.raises(CorpusError, match=r"no text to pack \(3 empty documents\)"):
        pack_tokens(write_texts(tmp_path / "b.jsonl", ["", "", ""]), tmp_path / "none", bpe, eos="<end>", **QUIET)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_corpus(bpe, tmp_path):
    rows = texts(1000, seed=9)
    for name, times in ("a", 20), ("b", 300):
        parquet.write_table(pa.table({"text": rows * times}), tmp_path / f"{name}.parquet", use_dictionary=False)
    write_texts(tmp_path / "a.jsonl", rows * 6)
    write_texts(tmp_path / "b.jsonl", rows * 24)
    assert sum(map(len, rows)) * 300 > 60 << 20
    script = """
import sys
from pathlib import Path
from qwen_term_retrieval.tokens.packing import pack_tokens
from qwen_term_retrieval.tokens.sources import read_documents

def peak():
    # Not ru_maxrss: a child starts with its parent's.
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

def read(path):
    sum(1 for _ in read_documents(Path(path), ("text",)))
    return peak()

def pack(path):
    pack_tokens(path, path + ".out", sys.argv[1], eos="<end>", num_workers=1, quiet=True)
    return peak()

print(*(-run("a" + suffix) + run("b" + suffix) for run, suffix in [(read, ".parquet"), (pack, ".jsonl")]))
"""
    command = [sys.executable, "-c", script, str(bpe)]
    grown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert max(map(int, grown)) < 24 * 1024  # KiB
