import json

import numpy as np
import pytest

from benchmarks.real_speech.__main__ import Benchmark, check_training_texts, main, training_texts
from benchmarks.real_speech.asterisk import asterisk_texts
from qwen_term_retrieval.corpora.utterance import Utterance
from qwen_term_retrieval.packs.packing import pack_corpus
from qwen_term_retrieval.storage.packages import PackageError


@pytest.fixture(scope="module")
def held_out() -> frozenset[str]:
    try:
        return asterisk_texts()
    except PackageError as error:
        pytest.skip(f"the Asterisk packages cannot be had: {error}")


def utterances(*texts: str) -> list[Utterance]:
    silence = np.zeros(1600, np.int16)
    return [
        Utterance(key=str(row), audio=silence, sampling_rate=16_000, text=text, terms=(text.split()[0],))
        for row, text in enumerate(texts)
    ]


def test_a_training_pack_that_holds_a_test_text_stops_the_run(tmp_path, held_out):
    pack_corpus(utterances("atrial fibrillation", "FOLDER seven!"), tmp_path / "pack", quiet=True)
    with pytest.raises(ValueError, match=r"pack holds 1 texts of the test sets, such as \['FOLDER seven!'\]"):
        check_training_texts(Benchmark(tmp_path / "work", tmp_path, tmp_path / "pack"))
    assert not (tmp_path / "work").exists()


def test_a_training_pack_that_holds_a_test_text_as_a_term_stops_the_run(tmp_path, held_out):
    assert "goodbye" in held_out
    pack_corpus(utterances("goodbye my dear friend"), tmp_path / "pack", quiet=True)
    with pytest.raises(ValueError, match="goodbye"):
        check_training_texts(Benchmark(tmp_path / "work", tmp_path, tmp_path / "pack"))


def test_a_clean_training_corpus_is_counted(tmp_path, held_out):
    pack_corpus(utterances("atrial fibrillation", "folder eleven"), tmp_path / "pack", quiet=True)
    check_training_texts(Benchmark(tmp_path / "work", tmp_path, tmp_path / "pack"))
    assert json.loads((tmp_path / "work" / "training_texts.json").read_text()) == {"checked": 4, "leaked": 0}


def test_training_texts_are_read_from_a_manifest_too(tmp_path):
    rows = [{"audio": "a.wav", "text": "one two", "terms": ["two"]}, {"audio": "b.wav", "text": "three", "terms": []}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    assert list(training_texts(tmp_path)) == ["one two", "two", "three"]


@pytest.mark.parametrize(("stage", "remedy"), [("train-texts-check", "--training-corpus"), ("model", "--model")])
def test_a_stage_without_its_input_is_refused_before_any_stage_runs(tmp_path, capsys, stage, remedy):
    with pytest.raises(SystemExit):
        main(["--work", str(tmp_path), "--stage", "fetch", "--stage", stage])
    assert f"give {remedy}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_report_names_the_stage_result_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ranks ours\.json is missing: run the stage"):
        main(["--work", str(tmp_path), "--stage", "report"])
