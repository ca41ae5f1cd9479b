import json
import logging
import re

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

from qwen_term_retrieval.errors import BadAudioError
from qwen_term_retrieval.evaluation.evaluator import RetrievalEvaluator
from qwen_term_retrieval.evaluation.html_report import check_report, read_trainer_state, write_report
from qwen_term_retrieval.retrieval.calibration import CalibrationError, calibrate
from qwen_term_retrieval.retrieval.retriever import TermRetriever
from tests.doubles.tiny_trainer import tiny_model

SECOND = np.zeros(16_000, np.int16)


@pytest.fixture(scope="module")
def rows(say):
    def row(key, pcm, text, *terms):
        duration = len(pcm) / 16_000
        return {"key": key, "audio": (pcm, 16_000), "text": text, "terms": list(terms), "duration": duration}

    return [
        row("right", say("kubernetes", speed=1.05), "kubernetes", "kubernetes"),
        row("<missed>", say("photosynthesis"), "pneumonia & more", "pneumonia"),  # its label is wrong
        row("alarm", say("saxophone"), ""),
        row("silent", SECOND, ""),
    ]


@pytest.fixture(scope="module")
def evaluator(rows):
    return RetrievalEvaluator(rows, distractors=["photosynthesis", "saxophone"], threshold=0.5, bank_sizes=(1, 3, 99))


@pytest.fixture(scope="module")
def evaluation(evaluator, listening_model):
    return evaluator.run(listening_model)


def test_a_report_shows_numbers_pictures_and_the_clips_that_went_wrong(evaluator, evaluation, tmp_path):
    history = [{"step": 1, "eval_recall@10": 0.5, "eval_mrr": 0.4}]
    page = write_report(evaluator, evaluation, tmp_path / "a" / "report", trainer_state={"log_history": history})
    text = page.read_text()
    shown = set(re.findall(r'src="([^"]+)"', text))
    pictures = {"recall_by_bank.png", "precision_recall.png", "scores.png", "training.png"}
    assert shown == pictures | {"clips/000001.wav", "clips/000002.wav"}
    for name in pictures:
        assert (page.parent / name).read_bytes().startswith(b"\x89PNG")
    assert np.array_equal(
        soundfile.read(page.parent / "clips/000001.wav", dtype="int16")[0], evaluator.rows[1]["audio"][0]
    )
    assert "&lt;missed&gt;" in text
    assert "pneumonia &amp; more" in text
    assert "photosynthesis" in text  # heard in place of it
    assert json.loads((page.parent / "metrics.json").read_text())["among 4 terms"]["recall@1"] == 0.5


def test_a_report_on_a_model_that_hears_sounds_draws_terms_beside_them(evaluator, evaluation, tmp_path):
    model = tiny_model()
    plain = write_report(evaluator, evaluation, tmp_path / "plain", model=model)
    model.add_phoneme_head()
    page = write_report(evaluator, evaluation, tmp_path / "report", model=model)
    assert "Sound by sound" not in plain.read_text()
    text = page.read_text().partition("Sound by sound")[2]
    shown = re.findall(r'src="(alignment_\d.png)" alt="(\w+), sound by sound"', text)
    assert [term for _, term in shown] == ["kubernetes", "pneumonia", "saxophone", "photosynthesis"]
    assert re.findall(r"<tr><td>([\w ]+)<br>", text) == ["found", "missed", "falsely found", "falsely found"]
    for name, _ in shown:
        assert imread(page.parent / name).shape[2] == 4
    assert "clips/000000.wav" in text


def test_a_term_that_cannot_be_drawn_says_why(listening_model, rows, tmp_path):
    silent = {**rows[3], "terms": ["pneumonia"]}
    evaluator = RetrievalEvaluator([rows[0], silent])
    model = tiny_model()
    model.add_phoneme_head()
    page = write_report(evaluator, evaluator.run(listening_model), tmp_path / "report", model=model)
    assert "pneumonia: the clip is silent: nothing is heard in it" in page.read_text()


def test_each_bank_holds_all_terms_to_find_and_a_few_of_the_others(evaluation):
    assert list(evaluation.metrics_by_bank) == [2, 3, 4]
    assert evaluation.metrics_by_bank[4]["recall@1"] == 0.5
    recalls = [metrics["mrr"] for metrics in evaluation.metrics_by_bank.values()]
    assert recalls == sorted(recalls, reverse=True)
    assert evaluation.metrics_by_bank[4]["mrr"] == evaluation.metrics["mrr"]
    assert evaluation.clips.tolist() == [0, 1]


def test_a_distractor_that_is_said_is_in_every_bank(rows, listening_model):
    others = ["pneumonia", "photosynthesis", "saxophone", "sepsis", "gout"]
    evaluator = RetrievalEvaluator(rows, ["kubernetes"], distractors=others, bank_sizes=(1, 3))
    assert evaluator.run(listening_model).metrics_by_bank[1]["pairs"] == 2


def test_a_report_is_written_over_nothing_but_a_report_and_then_only_if_asked(evaluator, evaluation, tmp_path):
    (tmp_path / "notes").mkdir()
    for name in ("report.html", "metrics.json"):
        (tmp_path / "notes" / name).touch()
    with pytest.raises(FileExistsError, match="notes exists and is not a report"):
        write_report(evaluator, evaluation, tmp_path / "notes", overwrite=True)
    write_report(evaluator, evaluation, tmp_path / "report")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        check_report(tmp_path / "report")
    assert write_report(evaluator, evaluation, tmp_path / "report", overwrite=True).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "report"]


def test_a_report_that_fails_leaves_nothing(evaluation, rows, tmp_path):
    broken = RetrievalEvaluator([rows[0], {**rows[1], "audio": "gone.wav"}, *rows[2:]])
    with pytest.raises(BadAudioError, match=r"gone\.wav"):
        write_report(broken, evaluation, tmp_path / "report")
    assert not list(tmp_path.iterdir())


def test_a_model_that_no_run_left_has_no_training_curves(evaluator, evaluation, tmp_path):
    page = write_report(evaluator, evaluation, tmp_path / "report", trainer_state=read_trainer_state(tmp_path))
    assert not (page.parent / "training.png").exists()


def test_terms_that_the_glossary_lacks_are_counted_aloud(rows, listening_model, caplog):
    message = "1 of the 2 terms said in the clips are not in the glossary"
    with caplog.at_level(logging.WARNING):
        RetrievalEvaluator(rows, ["Kubernetes", "sepsis"])(listening_model)
    assert message in caplog.text
    caplog.clear()
    retriever = TermRetriever(listening_model)
    retriever.index(["kubernetes", "sepsis"])
    threshold = retriever.threshold
    with caplog.at_level(logging.WARNING):
        calibrate(retriever, rows)
    retriever.threshold = threshold
    assert message in caplog.text


def test_a_glossary_of_other_things_than_are_said_shows_false_alarms_alone(rows, listening_model):
    metrics = RetrievalEvaluator(rows, ["sepsis"], threshold=-1.0)(listening_model)
    assert metrics["pairs"] == 0
    assert metrics["false_alarms_per_minute"] > 0
    retriever = TermRetriever(listening_model)
    retriever.index(["sepsis"])
    with pytest.raises(CalibrationError, match="holds none of the 2 terms said in the clips"):
        calibrate(retriever, rows)
