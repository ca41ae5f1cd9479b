"""Imports run one way between the rooms, and nothing goes in a circle: the contracts in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes.launching import ROOT

LINT = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]


@pytest.fixture
def house(tmp_path):
    """The package as a wheel installs it, with the rooms that lie at the top of the repository in their place."""
    package = tmp_path / "qwen_term_retrieval"
    only_python = shutil.ignore_patterns("demo", "__pycache__")
    shutil.copytree(ROOT / "qwen_term_retrieval", package, ignore=only_python)
    for room in ("builders", "trainer_callbacks"):
        shutil.copytree(ROOT / room, package / room, ignore=only_python)
    return package


def lint(house):
    environment = os.environ | {"PYTHONPATH": str(house.parent), "NO_COLOR": "1", "COLUMNS": "200"}
    command = [*LINT, str(ROOT / "pyproject.toml")]
    return subprocess.run(command, cwd=house.parent, env=environment, capture_output=True, text=True)


def test_no_import_runs_against_the_stated_order_and_none_in_a_circle(house):
    done = lint(house)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def test_a_back_arrow_is_found(house):
    with (house / "audio" / "collate.py").open("a") as file:
        file.write("\n\ndef back():\n    from qwen_term_retrieval.packs.pack import Pack\n\n    return Pack\n")
    done = lint(house)
    assert done.returncode == 1
    assert "qwen_term_retrieval.audio is not allowed to import qwen_term_retrieval.packs" in done.stdout


def test_a_circle_of_files_in_one_room_is_found(house):
    with (house / "models" / "embeddings.py").open("a") as file:
        file.write("\n\nfrom qwen_term_retrieval.models.spans import windows  # noqa\n")
    done = lint(house)
    assert done.returncode == 1
    assert "No files and no rooms go in a circle BROKEN" in done.stdout


def test_a_room_without_a_place_is_found(house):
    (house / "attic").mkdir()
    (house / "attic" / "__init__.py").write_text('"""A room that nobody gave a place."""\n')
    done = lint(house)
    assert done.returncode == 1
    assert "attic" in done.stdout + done.stderr
