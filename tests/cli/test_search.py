import io
import json
import re
import shutil
import sys

import datasets
import numpy as np
import pytest
import soundfile
from datasets import Dataset
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner

from qwen_term_retrieval.cli import app
from qwen_term_retrieval.models import TermRetrievalConfig
from qwen_term_retrieval.models.model_card import model_card, read_card

TERMS = ["pneumonia", "kubernetes", "saxophone", "penicillin"]


@pytest.fixture(scope="module")
def model_folder(listening_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    listening_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recordings(say, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "terms.txt").write_text("\n".join([*TERMS, "", "Pneumonia"]))
    for term in TERMS:
        pause = np.zeros(8_000, np.int16)
        soundfile.write(folder / f"{term}.wav", np.concatenate([pause, say(term, speed=1.05), pause]), 16_000)
    return folder


def qtr(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_search_prints_terms_scores_and_times(model_folder, recordings):
    result = qtr("search", model_folder, recordings / "terms.txt", recordings / "saxophone.wav", "--top-k", 2)
    assert result.exit_code == 0, result.output
    heading, best, _ = [line for line in result.stdout.splitlines() if line]
    assert heading.endswith("saxophone.wav: 2 terms")
    term, score, start, _, end, unit = best.split()
    assert (term, unit) == ("saxophone", "s")
    assert float(score) > 0.8
    assert 0.3 < float(start) < 0.8 < float(end)


def test_search_writes_json_lines_for_many_files(model_folder, recordings):
    clips = [recordings / f"{term}.wav" for term in TERMS]
    result = qtr("search", model_folder, recordings / "terms.txt", *clips, "--threshold", 0.7, "--json", "--quiet")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(match["clip"], match["term"]) for match in found] == [
        (str(clip), term) for clip, term in zip(clips, TERMS, strict=True)
    ]
    assert set(found[0]) == {"clip", "term", "score", "start", "end"}


def test_what_stays_below_the_threshold_is_told_by_how_much(model_folder, recordings):
    search = ("search", model_folder, recordings / "terms.txt", recordings / "saxophone.wav")
    result = qtr(*search, "--threshold", 0.999)
    assert re.search(r"saxophone\.wav: 0 terms \(best: saxophone 0\.\d{3}, threshold 0\.999\)$", result.stdout.strip())
    assert qtr(*search, "--threshold", 0.999, "--json").stdout == ""


def test_silence_has_no_best_term(model_folder, recordings, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000, np.int16), 16_000)
    result = qtr("search", model_folder, recordings / "terms.txt", tmp_path / "silence.wav", "--threshold", 0.5)
    assert result.stdout.strip() == f"{tmp_path / 'silence.wav'}: 0 terms"


@pytest.mark.parametrize("command", ["search", "index", "evaluate"])
def test_a_revision_of_a_folder_is_refused(model_folder, dataset, recordings, tmp_path, command):
    arguments = {
        "search": (recordings / "terms.txt", recordings / "saxophone.wav"),
        "index": (recordings / "terms.txt", tmp_path / "index"),
        "evaluate": (dataset,),
    }[command]
    result = qtr(command, model_folder, *arguments, "--revision", "nosuch")
    assert result.exit_code == 1
    assert f"--revision nosuch is of a model on the Hub, but the folder {model_folder} was given" in result.output
    assert not (tmp_path / "index").exists()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def in_terminal(monkeypatch):
    """Runs a command as in a terminal, where it draws bars at once; gives what it draws."""

    def run(*arguments):
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            patch.setattr("qwen_term_retrieval.retrieval.encoding._BAR_AFTER_SECONDS", 0.0)
            app([str(argument) for argument in arguments], standalone_mode=False)
        return terminal.getvalue()

    datasets.enable_progress_bars()
    transformers_logging.enable_progress_bar()
    yield run
    datasets.enable_progress_bars()
    transformers_logging.enable_progress_bar()


def test_a_terminal_shows_how_far_each_part_of_a_search_is(in_terminal, model_folder, recordings):
    drawn = in_terminal("search", model_folder, recordings / "terms.txt", recordings / "saxophone.wav")
    assert all(f"{part}: 100%" in drawn for part in ("Loading weights", "encoding terms", "searching"))


@pytest.mark.parametrize("command", ["search", "index", "evaluate", "calibrate"])
def test_quiet_draws_no_bar(in_terminal, model_folder, dataset, recordings, tmp_path, command):
    model = shutil.copytree(model_folder, tmp_path / "model")
    terms = recordings / "terms.txt"
    arguments = {
        "search": (terms, recordings / "saxophone.wav"),
        "index": (terms, tmp_path / "index"),
        "evaluate": (dataset,),
        "calibrate": (dataset, terms, "--split", "test"),
    }[command]
    assert in_terminal(command, model, *arguments, "--quiet") == ""


def test_an_index_made_once_is_searched_instead_of_a_glossary(model_folder, recordings, tmp_path):
    assert "4 terms" in qtr("index", model_folder, recordings / "terms.txt", tmp_path / "index").stdout
    result = qtr("search", model_folder, tmp_path / "index", recordings / "pneumonia.wav", "--json", "--top-k", 1)
    assert json.loads(result.stdout.splitlines()[-1])["term"] == "pneumonia"
    again = qtr("index", "no/model", "no/glossary.txt", tmp_path / "index")  # before either is looked for
    assert again.exit_code == 1
    assert "is a term index already" in again.output


@pytest.mark.parametrize(
    ("glossary", "clip", "message"),
    [("missing.txt", "saxophone.wav", "missing.txt does not exist"), ("terms.txt", "missing.wav", "missing.wav")],
)
def test_a_missing_file_is_one_plain_line(model_folder, recordings, glossary, clip, message):
    result = qtr("search", model_folder, recordings / glossary, recordings / clip)
    assert result.exit_code == 1
    error = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["search", "index", "evaluate", "calibrate"])
def test_a_glossary_is_read_before_anything_that_takes_its_time(model_folder, recordings, tmp_path, command):
    missing, nowhere = recordings / "missing.txt", tmp_path / "nowhere"
    arguments = {
        "search": (nowhere, missing, nowhere),
        "index": (nowhere, missing, nowhere),
        "evaluate": (nowhere, nowhere, "--distractors", missing),
        "calibrate": (model_folder, nowhere, missing),
    }[command]
    assert "missing.txt does not exist" in qtr(command, *arguments).output


@pytest.fixture(scope="module")
def dataset(recordings, tmp_path_factory):
    """A folder of parquet with paths for audio."""
    rows = [
        {"audio": str(recordings / f"{term}.wav"), "text": term, "terms": [term], "duration": 2.0} for term in TERMS[:3]
    ]
    no_term = {"audio": str(recordings / f"{TERMS[3]}.wav"), "text": "", "terms": [], "duration": 2.0}
    folder = tmp_path_factory.mktemp("dataset")
    Dataset.from_list([{**rows[0], "key": "train"}]).to_parquet(folder / "train.parquet")
    Dataset.from_list([*rows, no_term]).to_parquet(folder / "test.parquet")
    return folder


def test_evaluate_prints_a_table_and_writes_every_metric(model_folder, dataset, recordings, tmp_path):
    (tmp_path / "more.txt").write_text("photosynthesis\nhelicopter\n")
    result = qtr(
        "evaluate", model_folder, dataset, "--distractors", tmp_path / "more.txt", "--threshold", 0.7,
        "--output", tmp_path / "new" / "eval.json", "--plot", tmp_path / "recall.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "4 clips, a bank of 5 terms" in result.stdout
    assert "| unseen  |       2 | 1.000 |" in result.stdout
    assert "at threshold 0.700: precision 1.000, recall 1.000" in result.stdout
    metrics = json.loads((tmp_path / "new" / "eval.json").read_text())
    assert metrics["recall@1"] == 1.0
    assert metrics["false_alarms_per_minute"] == 0.0
    assert (tmp_path / "recall.png").is_file()


def test_evaluate_names_the_splits_there_are(model_folder, dataset):
    result = qtr("evaluate", model_folder, dataset, "--split", "dev")
    assert result.exit_code == 1
    assert "has no split 'dev'; it has ['test', 'train']" in result.output


def test_a_calibrated_threshold_is_stored_and_used(model_folder, dataset, recordings):
    (model_folder / "README.md").write_text(model_card(TermRetrievalConfig.from_pretrained(model_folder)))
    calibrate = ("calibrate", model_folder, dataset, recordings / "terms.txt", "--split", "test")
    before = (model_folder / "config.json").read_bytes()
    result = qtr(*calibrate, "--dry-run")
    assert result.exit_code == 0, result.output
    assert re.search(r"threshold none → 0\.\d{4}: .*; a dry run, nothing was written", result.stdout)
    assert (model_folder / "config.json").read_bytes() == before
    result = qtr(*calibrate)
    threshold = json.loads((model_folder / "config.json").read_text())["threshold"]
    assert f"threshold none → {threshold:.4f}" in result.stdout
    assert f"threshold {threshold:.4f} → {threshold:.4f}" in qtr(*calibrate).stdout
    assert f"Before, it was {threshold:.4f}." in (model_folder / "README.md").read_text()
    assert read_card((model_folder / "README.md").read_text()).threshold == threshold
    found = qtr("search", model_folder, recordings / "terms.txt", recordings / "kubernetes.wav", "--json")
    assert [json.loads(line)["term"] for line in found.stdout.splitlines() if line[0] == "{"] == ["kubernetes"]


def test_what_is_no_recording_is_refused_before_the_model_is_looked_for(recordings, tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no sound")
    search = ("search", "no/model", recordings / "terms.txt", recordings / "saxophone.wav")
    assert f"{tmp_path / 'empty.wav'}: the file is empty" in qtr(*search, tmp_path / "empty.wav").output
    assert "text.wav: soundfile cannot read it" in qtr(*search, tmp_path / "text.wav").output


def test_what_was_found_in_one_file_is_shown_although_a_later_one_is_broken(model_folder, recordings, tmp_path):
    soundfile.write(tmp_path / "nan.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    clips = (recordings / "saxophone.wav", tmp_path / "nan.wav")
    result = qtr("search", model_folder, recordings / "terms.txt", *clips, "--top-k", 1)
    assert result.exit_code == 1
    assert "saxophone.wav: 1 term\n" in result.stdout
    assert "nan.wav" in result.stderr


@pytest.mark.parametrize(
    ("option", "file", "message"),
    [("--plot", ".", "is a folder"), ("--output", "terms.txt/eval.json", "terms.txt")],
)
def test_a_file_that_cannot_be_written_is_named_before_the_evaluation(recordings, option, file, message):
    result = qtr("evaluate", "no/model", "no/dataset", option, recordings / file)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "no/" not in result.stderr


def test_a_dataset_without_a_training_split_has_no_seen_terms(model_folder, dataset, tmp_path):
    shutil.copy(dataset / "test.parquet", tmp_path)
    result = qtr("evaluate", model_folder, tmp_path)
    assert result.exit_code == 0, result.output
    assert "| all " in result.stdout
    assert "seen" not in result.stdout
    assert "has no split 'train'" in qtr("evaluate", model_folder, tmp_path, "--train-split", "train").stderr


def test_a_report_is_written_by_name(model_folder, dataset, tmp_path):
    result = qtr("report", model_folder, dataset, tmp_path / "report", "--threshold", 0.7)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "report" / "report.html")
    assert "unseen" in result.stdout
    again = qtr("report", "no/model", "no/dataset", tmp_path / "report")
    assert "is a report already; give another folder, or --overwrite" in again.stderr


@pytest.mark.parametrize("threshold", ["7", "-1.5"])
def test_a_threshold_that_no_cosine_has_is_refused(model_folder, recordings, threshold):
    result = qtr(
        "search", model_folder, recordings / "terms.txt", recordings / "saxophone.wav", "--threshold", threshold
    )
    assert result.exit_code == 2
    assert "--threshold" in result.stderr


def test_a_term_is_shown_each_time_it_is_said(model_folder, recordings, tmp_path):
    said = ["saxophone", "pneumonia", "saxophone"]
    speech = [soundfile.read(recordings / f"{term}.wav", dtype="int16")[0] for term in said]
    soundfile.write(tmp_path / "lecture.wav", np.concatenate(speech), 16_000)
    search = ("search", model_folder, recordings / "terms.txt", tmp_path / "lecture.wav", "--each-time")
    result = qtr(*search, "--json", "--threshold", 0.7)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [match["term"] for match in found] == said
    starts = np.cumsum([0, *map(len, speech)]) / 16_000
    assert all(low < match["start"] < high for match, low, high in zip(found, starts[:-1], starts[1:], strict=True))


@pytest.mark.parametrize("options", [(), ("--each-time",)])
def test_a_clip_too_short_to_hear_a_term_in_is_refused(model_folder, recordings, tmp_path, options):
    soundfile.write(tmp_path / "click.wav", np.full(100, 1_000, np.int16), 16_000)
    search = ("search", model_folder, recordings / "terms.txt", tmp_path / "click.wav", "--threshold", 0.7)
    result = qtr(*search, *options)
    assert result.exit_code == 1
    assert f"{tmp_path / 'click.wav'}: 100 samples are too short to hear a term in" in result.stderr


@pytest.mark.parametrize("options", [(), ("--each-time",)])
def test_a_silent_file_is_warned_of(model_folder, recordings, tmp_path, caplog, options):
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000, np.int16), 16_000)
    clips = (recordings / "saxophone.wav", tmp_path / "silence.wav")
    result = qtr("search", model_folder, recordings / "terms.txt", *clips, "--threshold", 0.7, *options)
    assert result.exit_code == 0, result.output
    (warning,) = [each for each in caplog.messages if "silent" in each]
    assert "no term is heard in" in warning
    assert "saxophone" not in warning


def test_a_precision_of_nothing_is_refused_before_anything_is_read(recordings):
    result = qtr("calibrate", "no/model", "no/dataset", recordings / "missing.txt", "--target-precision", 0)
    assert result.exit_code == 1
    assert "--target-precision must be above 0 and at most 1, not 0.0" in result.stderr


def test_each_time_without_a_threshold_is_refused_before_the_glossary_is_embedded(
    listening_model, recordings, tmp_path
):
    listening_model.save_pretrained(tmp_path / "uncalibrated")
    (tmp_path / "no_index").mkdir()
    clip = recordings / "saxophone.wav"
    result = qtr("search", tmp_path / "uncalibrated", tmp_path / "no_index", clip, "--each-time")
    assert result.exit_code == 1
    assert "--each-time needs --threshold, or a model that `qtr calibrate` has given one" in result.stderr
