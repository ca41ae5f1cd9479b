"""`qtr pronounce`: what will be listened for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from qwen_term_retrieval.cli.app import MODELS, Quiet, app, log_to_terminal

_BY_DEFAULT = "phonemes:espeak:en-us"


@app.command(rich_help_panel=MODELS)
def pronounce(
    glossary: Annotated[Path, typer.Argument(metavar="GLOSSARY", help="Glossary file.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Name, folder or Hub id of the model that listens; default: as `qtr search`."),
    ] = None,
    shape: Annotated[
        Literal["text", "json"], typer.Option("--format", help="For people, or one JSON object.")
    ] = "text",
    quiet: Quiet = False,
) -> None:
    """Show how each term of a glossary will be listened for, and what of the glossary is left out.

    An entry that is said otherwise takes `pronunciations`: a respelling, or sounds between slashes, in the symbols that
    are shown here.

    For example:

        qtr pronounce glossary.csv
        qtr pronounce glossary.csv --model outputs/mine --format json
    """
    from qwen_term_retrieval.models.configuration import TermRetrievalConfig
    from qwen_term_retrieval.models.weights.shipped import model_place, shipped_models
    from qwen_term_retrieval.text.glossary import Glossary
    from qwen_term_retrieval.verification.pronounced import pronounce_glossary

    log_to_terminal(quiet)
    terms = Glossary.from_file(glossary)
    known = model is not None or shipped_models()
    config = TermRetrievalConfig(text_tower=_BY_DEFAULT) if not known else model_place(model)
    said = pronounce_glossary(terms, config)
    if shape == "json":
        typer.echo(json.dumps(said.to_dict(), indent=2, ensure_ascii=False))
        return
    for line in said.lines():
        typer.echo(line)
    left_out = f", {len(said.left_out)} left out" if said.left_out else ""
    typer.echo(f"{len(said.terms)} terms{left_out}")
