"""`qtr synthesize`: a corpus made of synthetic voices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen_term_retrieval.cli.app import DATA, Quiet, app, log_to_terminal


@app.command(rich_help_panel=DATA)
def synthesize(
    glossary: Annotated[Path, typer.Argument(metavar="GLOSSARY", help="Glossary (.txt, .csv, .json, .parquet …).")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; `qtr pack` reads it.")],
    voices_per_term: Annotated[int, typer.Option(min=1, help="Voices that say each term for training.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the corpus that is at OUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Speak the terms of a glossary in many synthetic voices: a training corpus where there are no recordings.

    Voices of Kokoro, flite and espeak-ng come from registry packages; other voices say the validation split.

    For example:

        qtr synthesize glossary.txt corpus/ --voices-per-term 4
        qtr pack corpus/ packs/mine
    """
    from qwen_term_retrieval.synthesis import synthesize_glossary

    log_to_terminal(quiet)
    report = synthesize_glossary(
        glossary,
        out,
        voices_per_term=voices_per_term,
        overwrite=overwrite,
        num_workers=workers,
        show_progress=not quiet,
    )
    typer.echo(f"{out}: {report.summary()}")
