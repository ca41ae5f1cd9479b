"""The command `qtr`. Every command is one call into the library; what is heavy is imported when a command runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
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


class OnError(StrEnum):
    """What packing does with bad audio."""

    RAISE = "raise"
    SKIP = "skip"
    SILENCE = "silence"


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn the errors that users cause into one line and exit code 1; those that we cause keep their traceback."""
    from qwen_term_retrieval.audio.shards import PackError

    try:
        yield
    except (ValueError, FileNotFoundError, FileExistsError, PackError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from error


def _log(quiet: bool) -> None:
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(levelname)s: %(message)s")


@app.callback()
def qtr() -> None:
    """Hear a term in speech and find it in a glossary.

    A typical way through:

        qtr pack recordings/ packs/mine     # a folder with metadata.csv, or a .jsonl manifest
        qtr inspect packs/mine

    `qtr COMMAND --help` explains each command with examples.
    """


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(help="Folder of audio with metadata.{csv,jsonl,parquet}, or a manifest.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    sampling_rate: Annotated[int, typer.Option(help="Rate of the packed audio, in Hz.")] = 16_000,
    shard_mib: Annotated[int, typer.Option(min=1, help="Upper bound of a shard file, in MiB.")] = 2048,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core unless given.")] = None,
    on_error: Annotated[OnError, typer.Option(help="What to do with audio that cannot be used.")] = OnError.RAISE,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the pack that is at OUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Pack a corpus into memory-mapped shards.

    Killed, it goes on where it was when run again. The bytes of a pack depend on the corpus alone.

    A corpus is a folder of audio with a table beside it:

        recordings/metadata.csv:   file_name,text,terms
                                   a.wav,patient has atrial fibrillation,atrial fibrillation
                                   b.wav,good morning,

    or JSON Lines: `{"audio": "a.wav", "text": "…", "terms": ["…"], "term_starts": [0.8], "term_ends": [1.9]}`.

    For example:

        qtr pack recordings/ packs/mine
        qtr pack terms.json packs/terms --on-error skip --workers 8
    """
    from qwen_term_retrieval.audio.packing import pack_corpus

    _log(quiet)
    with plain_errors():
        summary = pack_corpus(
            source,
            out,
            sampling_rate=sampling_rate,
            shard_bytes=shard_mib << 20,
            num_workers=workers,
            on_error=on_error.value,
            overwrite=overwrite,
            quiet=quiet,
        )
    typer.echo(summary)


@app.command()
def inspect(folder: Annotated[Path, typer.Argument(help="A pack.")]) -> None:
    """Show what is inside a pack.

    For example:

        qtr inspect packs/mine
    """
    from qwen_term_retrieval.audio.pack import Pack

    with plain_errors():
        typer.echo(Pack.open(folder).inspect())


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="A pack.")], quiet: Quiet = False) -> None:
    """Read every byte of a pack and compare checksums; exit code 1 where a bit differs.

    For example:

        qtr verify packs/mine
    """
    from qwen_term_retrieval.audio.pack import Pack

    with plain_errors():
        opened = Pack.open(folder)
        damages = opened.verify(quiet=quiet)
    for damage in damages:
        typer.secho(damage, fg="red", err=True)
    if damages:
        raise typer.Exit(1)
    typer.echo(f"{folder}: whole, {opened.num_clips} clips")


if __name__ == "__main__":
    app()
