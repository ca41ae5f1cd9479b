"""`qtr text convert`, `split`, `inspect` and `train-tokenizer`: pairs of prompt and response, made ready."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qwen_term_retrieval.cli.app import DATA, Commands, Quiet, app, log_to_terminal

text = typer.Typer(cls=Commands, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)
app.add_typer(text, name="text", rich_help_panel=DATA)

Source = Annotated[list[Path], typer.Argument(metavar="SOURCE", help="Files of pairs, or folders of them.")]
Converted = Annotated[list[Path], typer.Argument(metavar="SOURCE", help="Parquet that `convert` made, or folders.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at OUT.")]
Seed = Annotated[int, typer.Option(help="Of the draw.")]


class OnError(StrEnum):
    """What converting does with a row that is no pair."""

    RAISE = "raise"
    SKIP = "skip"


@text.callback()
def of_text() -> None:
    """Pairs of prompt and response, made ready for `scripts/pretrain_text.py`.

    `scripts/prepare_text.py` takes all of these steps, and `qtr tokenize`, at once.

    For example:

        qtr text convert faq.csv pairs.parquet --column prompt=question --column response=answer
        qtr text split pairs.parquet data/faq
        qtr text inspect data/faq/train.parquet --out reports/faq
        qtr text train-tokenizer data/faq/train.parquet data/faq/tokenizer
    """


@text.command()
def convert(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Parquet file to make.")],
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="OURS=THEIRS", help="A column of another name; repeatable."),
    ] = None,
    on_error: Annotated[OnError, typer.Option(help="What to do with a row that is no pair.")] = OnError.RAISE,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """CSV, TSV, JSON, JSON Lines or Parquet to one Parquet file of `prompt` and `response`.

    For example:

        qtr text convert faq.csv pairs.parquet --column prompt=question --column response=answer
        qtr text convert dumps/ pairs.parquet --on-error skip
    """
    from qwen_term_retrieval.pretraining.text.preparation.converting import convert_pairs
    from qwen_term_retrieval.pretraining.text.preparation.pairs import named_columns

    log_to_terminal(quiet)
    names = named_columns(column or [])
    typer.echo(convert_pairs(source, out, columns=names, on_error=on_error.value, overwrite=overwrite, quiet=quiet))


@text.command()
def split(
    source: Converted,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    valid: Annotated[float, typer.Option(help="Share of the distinct responses for validation.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share for a test set.")] = 0.0,
    valid_source: Annotated[
        list[Path] | None, typer.Option(help="Parquet of validation pairs, in place of a share.")
    ] = None,
    test_source: Annotated[list[Path] | None, typer.Option(help="Test pairs, in place of a share.")] = None,
    seed: Seed = 42,
    duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Keep pairs that repeat an earlier one.")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Training and validation pairs that share no response, whatever the order of the rows.

    For example:

        qtr text split pairs.parquet data/pairs
        qtr text split pairs.parquet data/pairs --valid 0.01 --test 0.01
    """
    from qwen_term_retrieval.pretraining.text.preparation.splitting import split_pairs

    log_to_terminal(quiet)
    settings = {"valid": valid, "test": test, "seed": seed, "deduplicate": not duplicates}
    given = {"valid_source": valid_source, "test_source": test_source}
    typer.echo(split_pairs(source, out, **settings, **given, overwrite=overwrite, quiet=quiet))  # type: ignore[arg-type]


@text.command()
def inspect(
    source: Converted,
    out: Annotated[Path | None, typer.Option(help="Folder for the report as text, JSON and a page.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Counts tokens too: Hub id, folder or tokenizer.json.")] = None,
    max_seq_len: Annotated[int, typer.Option(help="The limit of which is said what it would cut.")] = 192,
    quiet: Quiet = False,
) -> None:
    """How good pairs are: counts, duplicates, lengths, and what a limit would cut.

    For example:

        qtr text inspect data/pairs/train.parquet
        qtr text inspect data/pairs/train.parquet --tokenizer data/pairs/tokenizer --out reports/pairs
    """
    from tokenizers import Tokenizer

    from qwen_term_retrieval.pretraining.text.preparation.inspecting import inspect_pairs
    from qwen_term_retrieval.tokens.tokenizer import PackingTokenizer

    log_to_terminal(quiet)
    backend = Tokenizer.from_str(PackingTokenizer.of(tokenizer, eos=None).definition) if tokenizer else None
    report = inspect_pairs(source, tokenizer=backend, max_seq_len=max_seq_len, quiet=quiet)
    if out is not None:
        report.save(out)
    typer.echo(report)


@text.command()
def train_tokenizer(
    source: Converted,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens, the 256 bytes among them.")] = 8192,
    sample_chars: Annotated[int, typer.Option(help="Characters that it is trained on, about.")] = 4_000_000,
    seed: Seed = 42,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """A byte-level BPE tokenizer, trained on a sample so that its memory stays small.

    For example:

        qtr text train-tokenizer data/pairs/train.parquet data/pairs/tokenizer
    """
    from qwen_term_retrieval.pretraining.text.preparation import vocabulary

    log_to_terminal(quiet)
    settings = {"vocab_size": vocab_size, "sample_chars": sample_chars, "seed": seed}
    count = vocabulary.train_tokenizer(source, out, **settings, overwrite=overwrite, quiet=quiet)
    typer.echo(f"{out}: {count} tokens")
