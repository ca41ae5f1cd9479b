"""Settings of a run from a YAML recipe and then from flags: what the scripts and the Modal app begin with.

    python scripts/train.py                                   # the `demo` recipe
    python scripts/train.py --recipe laptop --learning_rate 5e-4
    python scripts/train.py --recipe my.yaml --push_to_hub
    python scripts/train.py --recipe laptop_lora --max_batch_seconds None --contrastive_batch_size 64

A recipe changes the defaults of settings for a purpose; a flag changes one for a run. Both are read by the
same parser, so what is wrong in one is wrong in the other. `--num_train_epochs` takes the place of a recipe's
`max_steps`.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from qwen_term_retrieval.did_you_mean import did_you_mean
from qwen_term_retrieval.runs.arguments import RunArguments

# Of the checkout: an installed wheel has neither scripts nor recipes.
RECIPES = Path(__file__).resolve().parents[2] / "configs" / "recipes"


def parse_recipe(
    settings: Sequence[type],
    recipes: Path = RECIPES,
    argv: Sequence[str] | None = None,
    script: argparse.ArgumentParser | None = None,
    default: str = "demo",
) -> tuple[Any, ...]:
    """Settings from `--recipe` (a name in the folder `recipes`, or a YAML file), then from flags.

    Args:
        settings: dataclasses, in the order in which they come back, one of them a `RunArguments`.
        recipes: a folder of your own.
        argv: flags; None: those of the command line.
        script: flags that the calling script has read already, and its description, for the help.
        default: the recipe where none is named.

    Raises:
        FileNotFoundError: no such recipe; names those there are.
        ValueError: a key or flag that is no setting, or a value of the wrong type; names the file, the key and the
            nearest setting.
    """
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--recipe", default=default)
    choice, flags = chooser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    parser = _SettingsParser(settings, choice.recipe, default, script)
    recipe = _read_recipe(_find_recipe(choice.recipe, recipes), parser)
    said = set(map(_name_of, flags))
    if "num_train_epochs" in said and "max_steps" not in said:
        recipe.pop("max_steps", None)  # else a recipe that counts steps would not hear of epochs
    parser.set_defaults(**recipe)
    try:
        *parsed, _, unknown = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True)
    except ValueError as error:  # also from transformers, where no `refusals.one_line_errors` would know it for one
        raise ValueError(str(error)) from error
    for flag in unknown:
        _refuse_unknown(_name_of(flag), parser.flags, "the command line")
    for each in parsed:
        if isinstance(each, RunArguments):
            each.recorded["recipe"] = choice.recipe
        if hasattr(each, "given"):
            each.given = frozenset({*recipe, *said} & vars(each).keys())
    return tuple(parsed)


def _name_of(flag: str) -> str:
    return flag.removeprefix("--").partition("=")[0]


class _SettingsParser(HfArgumentParser):
    """Raises a ValueError in place of printing its usage, which is five hundred lines; takes `None` where it may be."""

    def __init__(
        self, settings: Sequence[type], recipe: str, default: str, script: argparse.ArgumentParser | None
    ) -> None:
        super().__init__(
            settings,  # type: ignore[arg-type]
            description=script.description if script else "Train a speech-to-term retriever.",
            epilog="None unsets what may be left out: --test_split None, or after a recipe --max_batch_seconds None.",
            parents=[script] if script else [],
            allow_abbrev=False,
        )
        self.add_argument("--recipe", default=recipe, help=f"Name of a recipe or a YAML file (default {default}).")
        self.flags = {action.dest for action in self._actions}
        self.settings = {name: hint for of in settings for name, hint in typing.get_type_hints(of).items()}
        self.settings = {name: hint for name, hint in self.settings.items() if name in self.flags}
        self.action_of = {action.dest: action for action in reversed(self._actions)}
        for name, hint in self.settings.items():
            action = self.action_of[name]
            if type(None) in typing.get_args(hint) and action.default != "none":  # a word of `report_to`
                self._let_be_none(action)

    @staticmethod
    def _let_be_none(action: argparse.Action) -> None:
        action.type = _or_none(typing.cast(Callable[[str], Any], action.type))
        action.choices = action.choices and [*action.choices, None]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        namespace, unknown = super().parse_known_args(args, namespace)
        for name, value in vars(namespace).items():
            if value == [None]:
                setattr(namespace, name, None)
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


def _or_none(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    @functools.wraps(parse)
    def parsed(text: str) -> Any:
        return None if text in ("None", "none", "null") else parse(text)

    return parsed


def _find_recipe(name: str, recipes: Path) -> Path:
    for path in (Path(name), recipes / f"{name}.yaml"):
        if path.is_file():
            return path
    there_are = sorted(path.stem for path in recipes.glob("*.yaml"))
    raise FileNotFoundError(f"no recipe {name!r}: neither a YAML file nor one of {there_are} in {recipes}")


class _Loader(yaml.SafeLoader):
    """YAML 1.2 as to truth: `no`, the language or the strategy, is a word."""

    yaml_implicit_resolvers = {  # noqa: RUF012  of the class, as PyYAML has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), [*"tTfF"])


def _read_recipe(path: Path, parser: _SettingsParser) -> dict[str, Any]:
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: expected `setting: value` lines")
    for key in recipe:
        if key not in parser.settings:
            _refuse_unknown(str(key), set(parser.settings), str(path))
    try:
        return {key: _parsed(key, value, parser) for key, value in recipe.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _parsed(key: str, value: Any, parser: _SettingsParser) -> Any:
    """A value of a recipe as the flag of that name would give it."""
    hint = parser.settings[key]
    if value is None and type(None) not in typing.get_args(hint):
        raise ValueError(f"{key} needs a value")
    if isinstance(value, list | dict):
        if type(value) not in {typing.get_origin(kind) or kind for kind in (hint, *typing.get_args(hint))}:
            raise ValueError(f"{key} takes one value, not {value!r}")
        if isinstance(value, dict) or parser.action_of[key].nargs is None:
            return value
        flags = [f"--{key}", *map(str, value)]
    else:
        flags = [f"--{key}={value}"]
    return getattr(parser.parse_known_args(flags)[0], key)


def _refuse_unknown(key: str, known: set[str], where: str) -> None:
    raise ValueError(f"{where}: {key!r} is no setting{did_you_mean(key, known)}")
