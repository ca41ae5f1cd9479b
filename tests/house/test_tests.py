"""A test file stands alone: what tests share is imported from `tests/doubles` and `tests/processes`."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("*.py"))


def imported(file):
    """Modules that a file imports, and how far each import is relative."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module or ''}.{alias.name}", node.level) for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_what_is_shared_comes_from_doubles_or_processes(file):
    for module, level in imported(file):
        assert level == 0, f"{module} is imported by a relative name; write `from tests.doubles.x import y`"
        if module.split(".")[0] == "tests":
            assert module.startswith(("tests.doubles.", "tests.processes.")), f"{module} is imported from a test"
