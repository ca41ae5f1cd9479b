import re

import pytest
from typer import rich_utils
from typer.main import get_command
from typer.testing import CliRunner

from qwen_term_retrieval.cli import app
from qwen_term_retrieval.retrieval.encoding import CHUNK_SECONDS

COMMANDS = get_command(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_each_example_in_the_help_of_a_command_is_a_line_of_its_own(name, monkeypatch):
    monkeypatch.setattr(rich_utils, "MAX_WIDTH", 200)
    examples = re.findall(r"^ +(qtr .*)$", COMMANDS[name].callback.__doc__.partition("For example:")[2], re.MULTILINE)
    shown = CliRunner().invoke(app, [name, "--help"]).output.partition("For example:")[2].splitlines()
    assert examples
    assert [line.strip() for line in shown if line.strip()][: len(examples)] == examples
    assert not shown[0].strip()


@pytest.mark.parametrize("name", COMMANDS)
def test_each_argument_of_a_command_is_named_as_the_help_names_it(name):
    for argument in COMMANDS[name].params:
        if argument.param_type_name == "argument":
            assert argument.metavar
            assert argument.metavar.isupper()


def test_the_table_in_the_help_of_pack_has_one_left_edge():
    rows = re.findall(r"^.*\b[abc]\.wav,", COMMANDS["pack"].callback.__doc__, re.MULTILINE)
    assert len(rows) == 3
    assert len(set(map(len, rows))) == 1


def test_the_help_of_search_says_what_its_settings_count():
    search = COMMANDS["search"]
    (top_k,) = [option for option in search.params if option.name == "top_k"]
    assert "of a second of a recording" in top_k.help
    assert f"more than {CHUNK_SECONDS:g} s" in search.callback.__doc__


def test_the_help_of_the_whole_names_every_command_in_a_group():
    assert all(command.rich_help_panel for command in COMMANDS.values())
