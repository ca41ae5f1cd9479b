"""`qtr` on what a user got wrong: one line that is true, with a remedy; and a traceback for what we got wrong."""

import json

import pytest
import typer
from typer.testing import CliRunner

from qwen_term_retrieval.cli import app
from qwen_term_retrieval.cli.app import Commands


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


def test_a_folder_in_place_of_a_recording_is_called_a_folder(listening_model, tmp_path):
    listening_model.save_pretrained(tmp_path / "model")
    (tmp_path / "terms.txt").write_text("helicopter\n")
    line = error_of("search", tmp_path / "model", tmp_path / "terms.txt", tmp_path)
    assert line.endswith(f"{tmp_path}: it is a folder; give the recordings in it")


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
