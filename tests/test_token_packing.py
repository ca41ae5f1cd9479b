from __future__ import annotations

import gzip
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
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from transformers import AutoTokenizer

from qwen_term_retrieval.audio.shards import PackError
from qwen_term_retrieval.audio.utterance import CorpusError
from qwen_term_retrieval.audio.workers import MapExecutor
from qwen_term_retrieval.models.checkpoints import resolve_checkpoint
from qwen_term_retrieval.text import token_packing, token_parts
from qwen_term_retrieval.text.token_files import TokenPack
from qwen_term_retrieval.text.token_packing import pack_tokens
from qwen_term_retrieval.text.tokens import IGNORED_LABEL, MmapTokens

QUIET = {"num_workers": 1, "quiet": True}
SYLLABLES = [first + second for first in "bdfghklmnprst" for second in ("a", "e", "io", "u", "an", "el")]


@pytest.fixture(scope="module")
def minilm() -> Path:
    return resolve_checkpoint("sentence-transformers/all-MiniLM-L6-v2", ())


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> Path:
    """The `tokenizer.json` of a small byte-level BPE, made from the texts below."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<end>", "<sep>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(50), trainer)
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of a few words to a few thousand."""
    rng = random.Random(seed)
    return [
        " ".join("".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(int(rng.paretovariate(0.8)) + 2))
        for _ in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_texts(path: Path, documents: list[str]) -> Path:
    return write_jsonl(path, [{"text": text} for text in documents])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ids_of(tokens: MmapTokens) -> list[list[int]]:
    return [np.concatenate(list(tokens.document(i).values())).tolist() for i in range(tokens.num_documents)]


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
from qwen_term_retrieval.text import token_packing
token_packing._CHARS_PER_PART = 20_000
print("ready", flush=True)
token_packing.pack_tokens(
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
    with pytest.raises(PackError, match=r"other texts or settings. Delete .*other.incomplete and pack again"):
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


BAD_SOURCES = {
    "unknown column": (b'{"body": "x", "id": 1}\n', "a.jsonl has the columns body, id; name those"),
    "row without the column": (b'{"text": "x"}\n{"body": 1}\n', r"a.jsonl, row 2: no column 'text'; it has body"),
    "not JSON": (b'{"text": "x"}\n{"text": \n', "a.jsonl, row 2: not JSON: Expecting value"),
    "no object": (b'{"text": "x"}\n["y"]\n', "a.jsonl, row 2: expected an object"),
    "not UTF-8": (b'{"text": "x"}\n{"text": "\xff"}\n', "a.jsonl, row 2: not UTF-8"),
    "half a pair": (
        b'{"text": "x"}\n{"text": "ab\\ud800"}\n',
        "a.jsonl, row 2: holds half of a surrogate.*character 2",
    ),
    "empty": (b"", "a.jsonl is empty"),
}


@pytest.mark.parametrize("problem", BAD_SOURCES)
def test_a_bad_source_is_refused_with_file_row_and_what_is_there(problem, bpe, tmp_path):
    data, message = BAD_SOURCES[problem]
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(CorpusError, match=message):
        pack_tokens(tmp_path / "a.jsonl", tmp_path / "out", bpe, eos="<end>", **QUIET)
    assert not (tmp_path / "out").exists()


def test_damaged_and_unknown_files_are_refused(bpe, tmp_path):
    table = pa.table({"text": texts(300), "id": range(300)})
    parquet.write_table(table, tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-100])
    (tmp_path / "flipped.parquet").write_bytes(whole[:40] + bytes(200) + whole[240:])
    zipped = write_texts(tmp_path / "a.jsonl.gz", texts(300)).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(zipped[:-200])
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "folder").mkdir()
    for name, error, message in [
        ("cut.parquet", CorpusError, "not readable as Parquet"),
        ("flipped.parquet", CorpusError, "damaged Parquet"),
        ("cut.jsonl.gz", CorpusError, "damaged gzip"),
        ("a.txt", CorpusError, "known are .parquet, .jsonl"),
        ("folder", CorpusError, "no file with a suffix that can be read"),
        ("gone", FileNotFoundError, "does not exist"),
    ]:
        with pytest.raises(error, match=message):
            pack_tokens(tmp_path / name, tmp_path / "out", bpe, eos="<end>", **QUIET)
    with pytest.raises(CorpusError, match="no column 'body'; it has text, id"):
        pack_tokens(tmp_path / "a.parquet", tmp_path / "out", bpe, eos="<end>", columns=("body",), **QUIET)
    with pytest.raises(CorpusError, match="column 'id' holds '0', which is not text"):
        pack_tokens(tmp_path / "a.parquet", tmp_path / "out", bpe, eos="<end>", columns=("id",), **QUIET)
    with pytest.raises(ValueError, match="give a tuple of names"):
        pack_tokens(tmp_path / "a.parquet", tmp_path / "out", bpe, eos="<end>", columns="text", **QUIET)


def word_level(num_words: int) -> tokenizers.Tokenizer:
    vocabulary = {f"w{number}": number for number in range(num_words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer


def test_the_dtype_holds_the_whole_vocabulary_or_is_refused(bpe, tmp_path):
    source = write_texts(tmp_path / "a.jsonl", ["w1 w65536 w65535"])
    large = word_level(65_537)
    with pytest.raises(ValueError, match="ids up to 65536, which do not fit uint16; use uint32"):
        pack_tokens(source, tmp_path / "out", large, eos=None, dtype="uint16", **QUIET)
    assert pack_tokens(source, tmp_path / "out", large, eos=None, **QUIET).dtype == "uint32"
    assert ids_of(MmapTokens(tmp_path / "out", 1)) == [[1, 65_536, 65_535]]
    assert pack_tokens(source, tmp_path / "fits", word_level(65_536), eos=None, **QUIET).dtype == "uint16"
    assert pack_tokens(source, tmp_path / "wide", bpe, eos=None, dtype="uint32", **QUIET).dtype == "uint32"
    with pytest.raises(ValueError, match="one of auto, uint16, uint32"):
        pack_tokens(source, tmp_path / "other", bpe, eos=None, dtype="int64", **QUIET)


def test_a_tokenizer_without_the_tokens_named_or_without_a_fast_form_is_refused(bpe, minilm, tmp_path):
    source = write_texts(tmp_path / "a.jsonl", ["one"])
    with pytest.raises(ValueError, match="names no eos token; give eos='…'"):
        pack_tokens(source, tmp_path / "out", bpe, **QUIET)
    with pytest.raises(ValueError, match="has no token '<stop>'"):
        pack_tokens(source, tmp_path / "out", bpe, eos="<stop>", **QUIET)
    with pytest.raises(ValueError, match="object is not a fast tokenizer"):
        pack_tokens(source, tmp_path / "out", object(), **QUIET)
    with pytest.raises(ValueError, match="more than its header"):
        pack_tokens(source, tmp_path / "out", minilm, shard_bytes=4096, **QUIET)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    truncation = tokenizer.backend_tokenizer.truncation
    pack_tokens(source, tmp_path / "out", tokenizer, **QUIET)
    assert tokenizer.backend_tokenizer.truncation == truncation
    tokens = MmapTokens(tmp_path / "out", 1)
    tokens.check_tokenizer(minilm)
    with pytest.raises(ValueError, match=r"was packed with the tokenizer .*MiniLM.*load that one"):
        tokens.check_tokenizer(bpe)


def test_what_lies_at_the_output_is_not_touched_unless_asked_and_only_if_it_is_tokens(bpe, tmp_path):
    out = tmp_path / "out"
    pack_tokens(write_texts(tmp_path / "a.jsonl", ["one"]), out, bpe, eos="<end>", **QUIET)
    before = contents(out)
    other = write_texts(tmp_path / "b.jsonl", ["two"])
    with pytest.raises(FileExistsError, match="overwrite"):
        pack_tokens(other, out, bpe, eos="<end>", **QUIET)
    assert contents(out) == before
    pack_tokens(other, out, bpe, eos="<end>", overwrite=True, **QUIET)
    assert MmapTokens(out, 1).tokenizer().decode(ids_of(MmapTokens(out, 1))[0]).strip() == "two"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(FileExistsError, match="give another folder"):
        pack_tokens(other, tmp_path / "mine", bpe, eos="<end>", overwrite=True, **QUIET)
    (tmp_path / "busy.incomplete").mkdir()
    with FileLock(tmp_path / "busy.incomplete" / "lock"), pytest.raises(PackError, match="another process is packing"):
        pack_tokens(other, tmp_path / "busy", bpe, eos="<end>", **QUIET)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out")) == ["out"]


@pytest.fixture(scope="module")
def packed(bpe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack_tokens(
        write_texts(folder / "a.jsonl", texts(400)), folder / "out", bpe, eos="<end>", shard_bytes=8000, **QUIET
    )
    assert MmapTokens(folder / "out", 8).verify() == []
    return folder / "out"


@settings(deadline=None)
@given(data=st.data())
def test_verify_finds_any_flipped_bit(packed, data):
    name = data.draw(st.sampled_from(sorted(path.name for path in packed.iterdir())))
    path = packed / name
    whole = path.read_bytes()
    position, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    opened = TokenPack.open(packed)
    try:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
        damages = opened.verify()
        assert len(damages) == 1
        assert name in damages[0]
    finally:
        path.write_bytes(whole)


def test_damage_that_opening_can_see_is_refused_and_named(packed, tmp_path):
    def spoiled(name: str, change) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(packed, folder)
        path = folder / name
        data = change(path.read_bytes())
        path.unlink() if data is None else path.write_bytes(data)
        return folder

    second = (packed / "tokens_00001.bin").read_bytes()
    for name, change, message in [
        ("tokens.json", lambda data: data.replace(b"uint16", b"uint32"), "tokens.json is damaged"),
        ("tokens.json", lambda data: data[:-20], "tokens.json is damaged"),
        ("tokens.json", lambda data: b"[]", "tokens.json is damaged"),
        ("tokens.json", lambda data: None, "holds no tokens.json"),
        ("tokens_00000.bin", lambda data: data[:-2], "7998 bytes where 8000 belong"),
        ("tokens_00000.bin", lambda data: data[:50] + b"x" + data[51:], "header is damaged"),
        ("tokens_00000.bin", lambda data: data[:100], "not a shard of tokens"),
        ("tokens_00000.bin", lambda data: second, "a shard of another pack"),
        ("tokens_00000.bin", lambda data: None, "tokens_00000.bin is missing"),
        ("documents.npy", lambda data: data[:-8], "documents.npy"),
        ("documents.npy", lambda data: None, "documents.npy"),
        ("documents.npy", lambda data: data[:-1] + b"\1", "does not belong to this pack"),
    ]:
        folder = spoiled(name, change)
        with pytest.raises(PackError, match=message):
            MmapTokens(folder, 8)
    for name in ("documents.npy", "tokenizer.json", "tokens_00001.bin"):
        opened = TokenPack.open(packed)
        missing = TokenPack(spoiled(name, lambda data: None), opened.content).verify()
        assert len(missing) == 1
        assert f"{name}" in missing[0]
        assert "missing" in missing[0]


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
from qwen_term_retrieval.text.token_packing import pack_tokens
from qwen_term_retrieval.text.token_sources import read_documents

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


def test_neither_packing_nor_numpy_windows_load_torch(packed):
    script = (
        "import sys; from qwen_term_retrieval.text.token_packing import pack_tokens\n"
        "from qwen_term_retrieval.text.tokens import MmapTokens\n"
        "MmapTokens(sys.argv[1], 8, output='numpy')[0]; print('torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", script, str(packed)], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "False"
