"""`qtr tokenize`, and what `qtr inspect` and `qtr verify` say of its result."""

from typer.testing import CliRunner

from qwen_term_retrieval import MmapTokens
from qwen_term_retrieval.cli import app
from tests.doubles.token_corpus import texts, train_bpe, write_jsonl


def qtr(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_tokenize_inspect_and_verify_work_in_turn(tmp_path):
    tokenizer = train_bpe(tmp_path / "tokenizer.json")
    rows = [{"prompt": prompt, "response": response} for prompt, response in zip(texts(9), texts(9, 1), strict=True)]
    corpus = write_jsonl(tmp_path / "pairs.jsonl.gz", rows)
    options = ("--tokenizer", tokenizer, "--eos", "<end>", "--separator", "<sep>", "--workers", 1)
    packed = qtr("tokenize", corpus, tmp_path / "tokens", *options)
    assert packed.exit_code == 0, packed.output
    assert "9 documents" in packed.stdout
    assert "9" in qtr("inspect", tmp_path / "tokens").stdout
    assert qtr("verify", tmp_path / "tokens").exit_code == 0
    assert set(MmapTokens(tmp_path / "tokens", 8).document(0)) == {"prompt", "response"}

    shard = tmp_path / "tokens" / "tokens_00000.bin"
    damaged = bytearray(shard.read_bytes())
    damaged[-3] ^= 4
    shard.write_bytes(damaged)
    verified = qtr("verify", tmp_path / "tokens")
    assert verified.exit_code == 1
    assert "tokens_00000.bin" in verified.stderr


def test_a_column_that_is_not_there_is_one_line_with_what_is(tmp_path):
    corpus = write_jsonl(tmp_path / "texts.jsonl", [{"story": "a"}])
    tokenizer = train_bpe(tmp_path / "tokenizer.json")
    refused = qtr("tokenize", corpus, tmp_path / "tokens", "--tokenizer", tokenizer, "--eos", "")
    assert refused.exit_code == 1
    assert "story" in refused.stderr
