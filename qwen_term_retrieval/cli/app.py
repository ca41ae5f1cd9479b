"""The root of `qtr`, and what its commands share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

app = typer.Typer(
    name="qtr",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, warnings only.")]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn the errors that users cause into one line and exit code 1; those that we cause keep their traceback."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not type(error).__module__.startswith("qwen_term_retrieval."):
            raise
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from error


def log_to_terminal(quiet: bool) -> None:
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(levelname)s: %(message)s")


@app.callback()
def qtr() -> None:
    """Hear a term in speech and find it in a glossary.

    A typical way through:

        qtr pack recordings/ packs/mine     # a folder with metadata.csv, or a .jsonl manifest
        qtr inspect packs/mine
        accelerate launch scripts/train.py --dataset packs/mine --output_dir outputs/mine
        qtr evaluate outputs/mine packs/mine
        qtr search outputs/mine glossary.txt clip.wav

    `qtr COMMAND --help` explains each command with examples.
    """
