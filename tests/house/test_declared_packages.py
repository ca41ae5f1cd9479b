"""What is imported is installed with us: nothing comes only because another package happens to need it."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("qwen_term_retrieval", "builders", "trainer_callbacks", "scripts")


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported():
    for source in SOURCES:
        for file in (ROOT / source).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    yield from (alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    yield node.module.partition(".")[0]


def test_every_package_that_is_imported_is_declared_and_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    declared = {canonical(re.match(r"[\w.-]+", one)[0]) for one in wanted} | {"qwen-term-retrieval"}
    pinned = {canonical(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    distributions = packages_distributions()
    others = set(imported()) - set(sys.stdlib_module_names) - {"qwen_term_retrieval"}
    needed = {module: {canonical(one) for one in distributions.get(module, [module])} for module in others}
    assert {module for module, names in needed.items() if not names & declared} == set()
    assert declared - pinned - {"qwen-term-retrieval"} == set()
