"""`qtr` on what a user got wrong: one line that is true, with a remedy; and a traceback for what we got wrong."""

import json

import pytest
import soundfile
import typer
from typer.testing import CliRunner

from qwen_term_retrieval.cli import app
from qwen_term_retrieval.cli.app import Commands
from qwen_term_retrieval.models import TermRetrievalConfig
from qwen_term_retrieval.models.model_card import model_card


def error_of(*arguments):
    """The one line that a command ends with."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.output
    return line


@pytest.fixture
def broken():
    commands = typer.Typer(cls=Commands)

    @commands.command()
    def number(text: str):
        """Fails where Python does."""
        int(text)

    @commands.command()
    def read(path: str):
        """Fails where the system does."""
        with open(path) as file:
            file.read()

    return commands


def test_what_breaks_in_a_command_keeps_its_traceback(broken):
    assert isinstance(CliRunner().invoke(broken, ["number", "x"]).exception, ValueError)


def test_a_file_that_the_system_refuses_is_one_line(broken, tmp_path):
    result = CliRunner().invoke(broken, ["read", str(tmp_path / "nothing")])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "nothing" in result.stderr


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    (folder / "config.json").write_text(json.dumps({"model_type": "term_retrieval"}))
    return folder


def test_a_folder_that_is_no_pack_is_not_said_to_be_where_to_make_one(other_folder, tmp_path):
    assert error_of("inspect", other_folder).endswith("Make one with `qtr pack SOURCE PACK`.")
    assert error_of("inspect", tmp_path / "new").endswith(f"Make one with `qtr pack SOURCE {tmp_path / 'new'}`.")


def test_a_folder_without_recordings_is_refused(tmp_path):
    (tmp_path / "terms.txt").write_text("helicopter\n")
    line = error_of("search", "no/model", tmp_path / "terms.txt", tmp_path)
    assert line.endswith(f"{tmp_path}: no recording in this folder, nor below it")


def test_a_folder_without_weights_is_no_model(other_folder, tmp_path):
    (tmp_path / "terms.txt").write_text("helicopter\n")
    line = error_of("index", other_folder, tmp_path / "terms.txt", tmp_path / "index")
    assert line.startswith(f"error: {other_folder} holds no model: ")


def test_a_text_that_is_not_there_is_named_before_the_tokenizer_is_asked_for(tmp_path):
    line = error_of("tokenize", tmp_path / "no.parquet", tmp_path / "out", "--tokenizer", "nobody/nothing")
    assert "no.parquet does not exist" in line


def test_a_dataset_that_is_not_there_is_named(tmp_path):
    line = error_of("evaluate", tmp_path / "model", "packs/nosuch")
    assert "no dataset 'packs/nosuch': no folder here, nor given by the Hub" in line


def test_the_help_of_the_root_trains_a_pack_with_a_recipe_that_brings_no_glossary():
    assert "--recipe laptop --dataset packs/mine" in CliRunner().invoke(app, ["--help"]).stdout


def test_a_mistyped_model_is_answered_at_once_with_what_it_may_have_meant(other_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(other_folder.parent)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("the Hub was asked"))
    (tmp_path / "terms.txt").write_text("helicopter\n")
    mistyped = other_folder.name[:-2] + other_folder.name[:-3:-1]
    near = f"did you mean {other_folder.name!r}?"
    assert error_of("index", mistyped, tmp_path / "terms.txt", tmp_path / "index").endswith(near)
    absolute = error_of("index", other_folder.parent / mistyped, tmp_path / "terms.txt", tmp_path / "index")
    assert absolute.endswith(f"did you mean {str(other_folder)!r}?")


def test_a_card_does_not_send_people_to_a_pipeline_that_cannot_load_it():
    assert "pipeline_tag" not in model_card(TermRetrievalConfig(audio_tower="openai/whisper-tiny.en"))


def test_answers_that_could_not_be_written_are_refused_before_the_model_is_looked_for(tmp_path):
    (tmp_path / "terms.txt").write_text("helicopter\n")
    soundfile.write(tmp_path / "clip.wav", [0.1, 0.2] * 4_000, 16_000)
    search = ("search", "no/model", tmp_path / "terms.txt", tmp_path / "clip.wav")
    (tmp_path / "there.srt").touch()
    assert "there.srt is there already" in error_of(*search, "--format", "srt", "--out", tmp_path / "there.srt")
    assert "did you mean 'srt'" in error_of(*search, "--format", "str")
    assert "give one of them" in error_of(*search, "--each-time", "--best")
    assert "Errno" not in error_of(*search, "--out", tmp_path / "terms.txt" / "x.txt")
