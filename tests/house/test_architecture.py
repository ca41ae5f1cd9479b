"""The map of the house is the house: every file is in its tree, every step of its journeys exists, its sketches run."""

import ast
import re
from pathlib import Path
from unittest import mock

import pytest

from qwen_term_retrieval.corpora.corpus import READERS_OF_FILES
from qwen_term_retrieval.models.audio_towers import AUDIO_TOWERS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TOP = ("qwen_term_retrieval", "builders", "trainer_callbacks", "scripts", "examples")
JOURNEYS = PAGE + (ROOT / "docs" / "pretraining.md").read_text(encoding="utf-8")
STEPS = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", JOURNEYS)))
SKETCHES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "tests" / "README.md"})


def files_of_the_tree():
    """Paths that the tree names, from their indentation; a folder that is a package stands for its `__init__.py`."""
    folders = []
    for line in re.search(r"## The tree\n.*?\n```\n(.*?)```\n", PAGE, re.DOTALL)[1].splitlines():
        name = line.split()[0]
        del folders[(len(line) - len(line.lstrip())) // 2 :]
        path = Path(*folders, name)
        if name.endswith("/"):
            folders.append(name)
            path = path / "__init__.py" if (ROOT / path / "__init__.py").is_file() else None
        if path is not None:
            yield path.as_posix()


def test_every_python_file_is_in_the_tree_and_no_other():
    there = {path.relative_to(ROOT).as_posix() for top in TOP for path in (ROOT / top).rglob("*.py")}
    named = list(files_of_the_tree())
    assert sorted(named) == sorted(there)


def test_no_line_of_the_tree_says_nothing():
    lines = re.search(r"## The tree\n.*?\n```\n(.*?)```\n", PAGE, re.DOTALL)[1].splitlines()
    assert [line for line in lines if len(line.split()) < 2 or len(line) > 120] == []


ROOMS = [ROOT / "trainer_callbacks", *(init.parent for init in (ROOT / "qwen_term_retrieval").glob("*/**/__init__.py"))]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_a_room_opens_with_a_map_of_its_files(room):
    doors = re.findall(
        r"^([\w./]+(?:, [\w./]+)*)  +\S", ast.get_docstring(ast.parse((room / "__init__.py").read_text())), re.M
    )
    named = sorted(name for door in doors for name in door.split(", "))
    files = [path.name for path in room.glob("*.py") if not path.name.startswith("__")]
    assert named == sorted([*files, *(f"{init.parent.name}/" for init in room.glob("*/__init__.py"))])


@pytest.mark.parametrize(("file", "name"), STEPS, ids=lambda value: value)
def test_a_step_of_a_journey_is_where_it_is_said_to_be(file, name):
    path = next((path for path in (ROOT / "qwen_term_retrieval" / file, ROOT / file) if path.is_file()), None)
    assert path is not None, f"{file} does not exist"
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [node for node in body if getattr(node, "name", None) == part]
        assert found, f"{file} defines no {name}"
        body = found[0].body


def test_there_are_journeys():
    assert len(STEPS) > 30


@pytest.mark.parametrize("sketch", SKETCHES, ids=lambda sketch: re.findall(r"(?:def|class) (\w+)", sketch)[0])
def test_a_sketch_of_what_to_add_runs(sketch):
    with mock.patch.dict(READERS_OF_FILES), mock.patch.dict(AUDIO_TOWERS):
        exec(compile(sketch, "docs/architecture.md", "exec"), {"__name__": "sketch"})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_links_or_names_is_there(document):
    text = document.read_text(encoding="utf-8")
    links = [document.parent / link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    named = [ROOT / path for path in re.findall(r"\b(?:tests|examples|scripts|docs)/[\w/]+\.(?:py|md|png)", text)]
    assert [str(path) for path in [*links, *named] if not path.exists()] == []
