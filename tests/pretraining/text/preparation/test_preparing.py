"""From files to a folder that a run trains on, the tokenizer of it, and the memory that it takes."""

import json
import subprocess
import sys

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from qwen_term_retrieval.cli import app
from qwen_term_retrieval.pretraining.text.preparation import corpora
from qwen_term_retrieval.pretraining.text.preparation.converting import pairs_files
from qwen_term_retrieval.pretraining.text.preparation.pairs import named_columns
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


def test_splits_of_ones_own_are_taken_as_they_are_and_their_responses_are_not_trained_on(tmp_path):
    own = {"valid": [*made_up_pairs(30, seed=1), ("again", made_up_pairs(600)[5][1])], "test": made_up_pairs(9, seed=2)}
    files = {f"{name}_source": write_pairs(tmp_path / f"{name}.csv", pairs) for name, pairs in own.items()}
    folder = prepared(tmp_path / "data", **files)
    for name, pairs in own.items():
        assert read_parquet(folder / f"{name}.parquet") == pairs
        assert len(MmapPairs(folder / "tokens" / name, 64)) == len(pairs)
    assert read_parquet(folder / "train.parquet") == made_up_pairs(600)[:5] + made_up_pairs(600)[6:]
    assert json.loads((folder / "report.json").read_text())["splits"] == {"train": 599, "valid": 31, "test": 9}


def test_the_report_is_on_all_rows_there_were(tmp_path):
    pairs = made_up_pairs(300)
    source = write_pairs(tmp_path / "pairs.jsonl", [*pairs, *pairs[:7], ("no response", None)])
    prepare_text(source, tmp_path / "data", on_error="skip", vocab_size=300, num_workers=1, quiet=True)
    report = json.loads((tmp_path / "data" / "report.json").read_text())
    assert (report["files"], report["rows"], report["duplicates"]) == (["pairs.jsonl"], 308, 7)
    assert report["rejected"] == {"no response": 1}
    assert sum(report["splits"].values()) == 300
    for of_unit in report["lengths"].values():
        for of_column in of_unit.values():
            assert sum(texts for *_, texts in of_column["histogram"]) == 307


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


def test_an_end_token_that_a_text_spells_is_its_letters(tmp_path):
    """`</s>` is also how HTML ends what is struck out."""
    struck = [(f"{prompt} </s> {prompt}", f"<s>{response}</s>.") for prompt, response in made_up_pairs(300)]
    folder = tmp_path / "data"
    prepare_text(write_pairs(tmp_path / "pairs.jsonl", struck), folder, vocab_size=300, num_workers=1, quiet=True)
    pairs, tokenizer = MmapPairs(folder / "tokens" / "train", 500), AutoTokenizer.from_pretrained(folder / "tokenizer")
    batch = pairs.batch(range(len(pairs)))
    for ids_BL, length_B in ((batch.prompt_BS, batch.prompt_lengths_B), (batch.response_BT, batch.response_lengths_B)):
        for ids, length in zip(ids_BL, length_B, strict=True):
            assert (ids[:length] == tokenizer.eos_token_id).sum() == 1
    assert tokenizer.decode(batch.response_BT[0], skip_special_tokens=True) in dict(struck).values()


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


def test_dictionaries_are_their_entries_and_say_nothing_of_themselves():
    try:
        wordnet_then_gcide = list(corpora.CORPORA["dictionaries"]())
    except PackageError as error:
        pytest.skip(f"the package registry cannot be reached: {error}")
    gcide = wordnet_then_gcide[206_978:]
    assert len(gcide) > 200_000
    assert not [word for word, _ in gcide if word.startswith("00-")]
    assert ("Cockney", "Cockney , a. Of or relating to, or like, cockneys.") in gcide
    assert next(corpora.CORPORA["gcide"]()) == gcide[0]


def test_columns_are_named_as_ours_is_theirs():
    assert named_columns(["prompt=question"]) == {"prompt": "question"}
    for wrong in ("question=prompt", "prompt", "prompt="):
        with pytest.raises(ValueError, match="is no OURS=THEIRS; write prompt=question"):
            named_columns([wrong])


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
