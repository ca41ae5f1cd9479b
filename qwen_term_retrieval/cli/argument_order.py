"""The arguments of `qtr search`: a glossary and recordings, with the model before them as it once was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer


def glossary_and_clips(
    arguments: Sequence[str], model: str | None, quiet: bool = False
) -> tuple[str | None, Path, list[str]]:
    """The model, the glossary and the recordings of `GLOSSARY AUDIO…`, or of `MODEL GLOSSARY AUDIO…`.

    Args:
        arguments: as they were given.
        model: what `--model` says.
        quiet: no hint.

    Raises:
        typer.BadParameter: no recording.
    """
    if model is None and len(arguments) > 2 and _is_model(arguments[0], arguments[1]):
        model, *arguments = arguments
        if quiet:
            return model, Path(arguments[0]), list(arguments[1:])
        typer.secho(
            f"hint: the model is an option now: qtr search {arguments[0]} {arguments[1]}"
            f"{' …' if len(arguments) > 2 else ''} --model {model}",
            fg="yellow",
            err=True,
        )
    if len(arguments) < 2:
        raise typer.BadParameter("give a glossary and at least one recording: qtr search GLOSSARY AUDIO…")
    glossary, *clips = arguments
    return model, Path(glossary), clips


def _is_model(first: str, second: str) -> bool:
    """Whether what comes first is a model: a folder of one, or nothing on this machine with a glossary after it."""
    if Path(first).is_dir():
        return not (Path(first) / "meta.json").is_file()
    return not Path(first).exists() and (Path(second).suffix.lower() in _GLOSSARIES or Path(second).is_dir())


_GLOSSARIES = {".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet"}
