"""`qtr tokenize`: text to memory-mapped tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen_term_retrieval.cli.app import DATA, Quiet, app, log_to_terminal
from qwen_term_retrieval.cli.packs import ShardBytes, Workers


@app.command(rich_help_panel=DATA)
def tokenize(
    source: Annotated[
        list[Path], typer.Argument(metavar="SOURCE", help="Parquet or JSON Lines files (.gz too), or folders of them.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    tokenizer: Annotated[str, typer.Option(help="Hub id, folder, or tokenizer.json.")],
    column: Annotated[
        list[str] | None, typer.Option(help="Column of text, repeatable; else text, or prompt and response.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="uint16, uint32, or auto: the smaller one that fits.")] = "auto",
    eos: Annotated[str, typer.Option(help="Token that ends a document; auto: the tokenizer's own; '': none.")] = "auto",
    separator: Annotated[str | None, typer.Option(help="Token between two columns.")] = None,
    spelled_is_text: Annotated[
        bool, typer.Option("--spelled-is-text", help="Read a special token that a text spells as its letters.")
    ] = False,
    workers: Workers = None,
    shard_bytes: ShardBytes = "2GiB",  # type: ignore[assignment]
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the tokens at OUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Tokenize text into memory-mapped shards, which `MmapTokens` cuts into training windows.

    Killed, it goes on where it was when run again.

    For example:

        qtr tokenize corpus/*.parquet tokens/train --tokenizer Qwen/Qwen3-0.6B-Base
        qtr tokenize pairs.jsonl.gz tokens/pairs --tokenizer tokenizer.json --column prompt --column response
    """
    from qwen_term_retrieval.tokens.packing import pack_tokens

    log_to_terminal(quiet)
    summary = pack_tokens(
        source,
        out,
        tokenizer,
        columns=column or None,
        dtype=dtype,
        eos=eos or None,
        separator=separator,
        spelled_is_text=spelled_is_text,
        num_workers=workers,
        shard_bytes=shard_bytes,
        overwrite=overwrite,
        quiet=quiet,
    )
    typer.echo(summary)
