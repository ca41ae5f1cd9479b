"""`qtr convert-nemo`: checkpoints of NeMo's, and models for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen_term_retrieval.cli.app import MODELS, Quiet, app, log_to_terminal


@app.command(rich_help_panel=MODELS)
def convert_nemo(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A .nemo file; or a model's folder or Hub id.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The folder to make; or the .nemo file.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at TARGET.")] = False,
    quiet: Quiet = False,
) -> None:
    """Convert a NEST checkpoint of NeMo's into a model's folder, or such a model into a .nemo file.

    The encoder has the same bits after both ways.

    For example:

        qtr convert-nemo nest.nemo outputs/nest     # then: scripts/train.py --audio_tower outputs/nest
        qtr convert-nemo outputs/nest nest.nemo
    """
    from qwen_term_retrieval.pretraining.audio.nemo import convert_nemo as convert

    log_to_terminal(quiet)
    typer.echo(f"made {convert(source, target, overwrite=overwrite)}")
