from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import tokenizers
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from transformers import AutoTokenizer

from qwen_term_retrieval.errors import CorpusError, PackError
from qwen_term_retrieval.models.weights.checkpoints import resolve_checkpoint
from qwen_term_retrieval.tokens.mmap_tokens import MmapTokens
from qwen_term_retrieval.tokens.packing import pack_tokens
from qwen_term_retrieval.tokens.token_pack import TokenPack
from tests.doubles.token_corpus import QUIET, contents, ids_of, texts, train_bpe, write_texts


@pytest.fixture(scope="module")
def minilm() -> Path:
    return resolve_checkpoint("sentence-transformers/all-MiniLM-L6-v2", ())


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> Path:
    return train_bpe(tmp_path_factory.mktemp("bpe") / "tokenizer.json")


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
    with pytest.raises(FileExistsError, match="exists and is not a folder of tokens; it is left alone"):
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


def test_neither_packing_nor_numpy_windows_load_torch(packed):
    script = (
        "import sys; from qwen_term_retrieval.tokens.packing import pack_tokens\n"
        "from qwen_term_retrieval.tokens.mmap_tokens import MmapTokens\n"
        "MmapTokens(sys.argv[1], 8, output='numpy')[0]; print('torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", script, str(packed)], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "False"
