"""The root of `qtr`, and what its commands share."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qwen_term_retrieval.refusals import INTERRUPTED, REFUSALS, interrupted_line, is_refusal, message_of

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, warnings only.")]
# Groups of commands in `qtr --help`.
MODELS, PACKS, DATA = "Models", "Packs", "Making data"
# In a message: name=True, name=3, name='value', names={'ours': 'theirs'}.
_ARGUMENT = re.compile(
    r"""\b(?P<name>[a-z]+(_[a-z]+)*)=(?:True\b|(?P<number>-?\d+)|(?P<quote>['"])(?P<text>.*?)(?P=quote)"""
    r"""|\{'(?P<ours>\w+)': '(?P<theirs>\w+)'\})"""
)

_AFTER_CTRL_C = dict.fromkeys(("pack", "append", "tokenize"), "the same command goes on from here")


class Commands(TyperGroup):
    """Turns the errors that users cause into one line and exit code 1, and Ctrl-C into one line and 130.

    Errors that we cause keep their traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt as error:
            typer.secho(interrupted_line(_AFTER_CTRL_C.get(ctx.invoked_subcommand, "")), fg="red", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except REFUSALS as error:
            if not is_refusal(error):
                raise
            flags = [flag for parameter in self.commands[ctx.invoked_subcommand].params for flag in parameter.opts]
            typer.secho(f"error: {with_flags(message_of(error), flags)}", fg="red", err=True)
            raise typer.Exit(1) from error


def with_flags(message: str, flags: Collection[str]) -> str:
    """A message of the library in the words of a command that has these flags.

    >>> with_flags("pack with on_error='skip'", ["--on-error"])
    'pack with --on-error skip'
    """

    def flag(argument: re.Match[str]) -> str:
        name = "--" + argument["name"].replace("_", "-")
        if argument["ours"] and (one := name.removesuffix("s")) in flags:
            return f"{one} {argument['ours']}={argument['theirs']}"
        if name not in flags:
            return argument[0]
        return " ".join(filter(None, (name, argument["number"], argument["text"])))

    return _ARGUMENT.sub(flag, message)


app = typer.Typer(
    name="qtr",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def log_to_terminal(quiet: bool) -> None:
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(levelname)s: %(message)s")


@app.callback()
def qtr() -> None:
    """Hear a term in speech and find it in a glossary.

    A typical way through:

        qtr pack recordings/ packs/mine     # a folder with metadata.csv, or a .jsonl manifest
        qtr inspect packs/mine
        accelerate launch scripts/train.py --recipe laptop --dataset packs/mine --output_dir outputs/mine
        qtr models outputs/mine             # its checkpoints
        qtr report outputs/mine packs/mine reports/mine
        qtr search glossary.txt clip.wav --model outputs/mine

    `qtr COMMAND --help` explains each command with examples.
    """
