"""Settings of a run from a YAML recipe and then from flags: what the scripts and the Modal app begin with.

    python scripts/train.py                                   # the `demo` recipe
    python scripts/train.py --recipe laptop --learning_rate 5e-4
    python scripts/train.py --recipe my.yaml --push_to_hub

A recipe changes defaults (`training/arguments.py`) for a purpose; a flag changes one for a run.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from qwen_term_retrieval.training.arguments import DataArguments, ModelArguments, TermRetrievalArguments


def parse_recipe(
    recipes: Path, argv: Sequence[str] | None = None
) -> tuple[ModelArguments, DataArguments, TermRetrievalArguments]:
    """Settings from `--recipe` (a name in the folder `recipes`, or a YAML file; default `demo`), then from flags.

    Raises:
        FileNotFoundError: no such recipe; names those there are.
        ValueError: a key or flag that is no setting; names the file, the key and the nearest setting.
    """
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--recipe", default="demo")
    choice, flags = chooser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    parser = HfArgumentParser(
        [ModelArguments, DataArguments, TermRetrievalArguments],  # type: ignore[list-item]
        description="Train a speech-to-term retriever.",
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", default=choice.recipe, help="Name of a recipe or a YAML file (default demo).")
    path = _find_recipe(choice.recipe, recipes)
    known = {action.dest for action in parser._actions}
    parser.set_defaults(**_read_recipe(path, known))
    try:
        model, data, training, _, unknown = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True)
    except ValueError as error:  # also from transformers, where no `refusals.one_line_errors` would know it for one
        raise ValueError(str(error)) from error
    for flag in unknown:
        _refuse_unknown(flag.removeprefix("--").partition("=")[0], known, "the command line")
    return model, data, training


def _find_recipe(name: str, recipes: Path) -> Path:
    for path in (Path(name), recipes / f"{name}.yaml"):
        if path.is_file():
            return path
    there_are = sorted(path.stem for path in recipes.glob("*.yaml"))
    raise FileNotFoundError(f"no recipe {name!r}: neither a YAML file nor one of {there_are} in {recipes}")


def _read_recipe(path: Path, known: set[str]) -> dict[str, Any]:
    settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected `setting: value` lines")
    for key in settings:
        if key not in known:
            _refuse_unknown(str(key), known, str(path))
    return settings


def _refuse_unknown(key: str, known: set[str], where: str) -> None:
    near = difflib.get_close_matches(key, known, n=1)
    raise ValueError(f"{where}: {key!r} is no setting" + (f"; did you mean {near[0]!r}?" if near else ""))
