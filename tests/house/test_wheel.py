"""The built wheel, installed where no checkout is near."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

OF_THE_TOP = ("qwen_term_retrieval.builders", "qwen_term_retrieval.trainer_callbacks")
REPOSITORY = Path(__file__).parents[2]
PARTS = ("qwen_term_retrieval", "builders", "trainer_callbacks", "pyproject.toml", "setup.cfg", "README.md", "LICENSE")
MODULES = (
    "qwen_term_retrieval.builders.term_audio",
    "qwen_term_retrieval.trainer_callbacks",
    "qwen_term_retrieval.cli",
)


def test_the_wheel_has_every_room():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    listed = settings["packages"]
    rooms = {path.parent.relative_to(REPOSITORY) for path in (REPOSITORY / "qwen_term_retrieval").rglob("__init__.py")}
    assert {".".join(room.parts) for room in rooms} == {name for name in listed if not name.startswith(OF_THE_TOP)}


def test_the_wheel_installs_alone_and_holds_the_top_level_folders(tmp_path):
    for part in PARTS:
        source, target = REPOSITORY / part, tmp_path / "source" / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("demo", "__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(tmp_path / "source")]
    subprocess.run(wheel, check=True)
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    (built,) = tmp_path.glob("*.whl")
    subprocess.run([*pip[:3], "--python", str(python), "install", "--quiet", "--no-deps", str(built)], check=True)
    # The dependencies come from the environment of the tests; its editable install of this project does not.
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    code = f"import importlib\nfor name in {MODULES}: print(importlib.import_module(name).__file__)\n"
    code += "from datasets import load_dataset_builder; load_dataset_builder('term_audio', data_files=['m.jsonl'])"
    (tmp_path / "m.jsonl").touch()
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [Path(line).is_relative_to(site) for line in done.stdout.splitlines()] == [True] * len(MODULES)
    assert sorted(path.name for path in site.iterdir() if path.is_dir() and "info" not in path.name) == [
        "qwen_term_retrieval"
    ]
    templates = {str(path.relative_to(site / "qwen_term_retrieval")) for path in site.rglob("qwen*/**/*.jinja")}
    assert templates == {
        "evaluation/report.html.jinja",
        "evaluation/shipped_card.md.jinja",
        "models/model_card.md.jinja",
        "pretraining/text/preparation/quality.html.jinja",
    }
