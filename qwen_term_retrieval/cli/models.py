"""`qtr models`: which models there are, on the Hub and in the output folder of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen_term_retrieval.cli.app import MODELS, app

if TYPE_CHECKING:
    from qwen_term_retrieval.models.model_card import CardNumbers
    from qwen_term_retrieval.models.weights.revisions import Checkpoint, HubModel, Revision


@app.command(rich_help_panel=MODELS)
def models(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="Output folder of a run, Hub id as me/terms, or author as me/.")
    ] = "",
    author: Annotated[
        str, typer.Option(help="List this author's models on the Hub, as `qtr models AUTHOR/` does.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list in place of a table.")] = False,
) -> None:
    """List the models that came along, the revisions of one on the Hub, the checkpoints of a run, an author's models.

    A run with `--push_to_hub` tags what it pushes: `step-600`, and `best` and `final`, which move. Each tag is a
    `revision` to load; each checkpoint folder is a model to load.

    For example:

        qtr models                 # those that came along: qtr search glossary.txt clip.wav --model NAME
        qtr models me/terms        # TermRetriever.from_pretrained("me/terms", revision="best")
        qtr models outputs/mine    # qtr search glossary.txt clip.wav --model outputs/mine/checkpoint-600
        qtr models me/             # the models of `me` on the Hub; `/` alone: of everyone
    """
    from qwen_term_retrieval.models.weights.revisions import folder_checkpoints, hub_models, hub_revisions

    if not name and not author:
        _show_shipped(as_json)
        return
    if author and name:
        raise ValueError(f"give --author {author} or {name}, not both")
    if name.strip("/") and Path(name).is_dir():
        records = [_checkpoint_record(each) for each in folder_checkpoints(name)]
    elif name and not name.endswith("/"):
        records = [_revision_record(each) for each in hub_revisions(name)]
    else:
        records = [_model_record(each) for each in hub_models(author or name.rstrip("/") or None)]
    if as_json:
        typer.echo(json.dumps(records, indent=2, ensure_ascii=False))
    elif records:
        typer.echo(_table(records))
    else:
        typer.echo(f"no models of this library by {author or name.rstrip('/') or 'anyone'} on the Hub")


def _show_shipped(as_json: bool) -> None:
    from qwen_term_retrieval.models.weights.shipped import shipped_models

    records = [
        {
            "name": model.name,
            "base tower": model.base_tower,
            "bytes": model.num_bytes,
            "languages": list(model.languages),
            "licence": model.licence,
            **{name: model.recall.get(name) for name in ("speech", "bank", "recall@1", "recall@10")},
        }
        for model in shipped_models()
    ]
    if as_json:
        typer.echo(json.dumps(records, indent=2, ensure_ascii=False))
    else:
        typer.echo(_table(records) if records else "no model came along with this installation")


def _revision_record(revision: Revision) -> dict[str, Any]:
    date = _iso(revision.date)
    return {"revision": list(revision.names), "date": date, **_numbers(revision.numbers), "commit": revision.commit}


def _checkpoint_record(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "folder": str(checkpoint.folder),
        **_numbers(checkpoint.numbers),
        "bytes": checkpoint.num_bytes,
        "best": checkpoint.is_best,
        "whole": checkpoint.is_whole,
    }


def _model_record(model: HubModel) -> dict[str, Any]:
    return {"model": model.name, "date": _iso(model.date), "downloads": model.downloads, "likes": model.likes}


def _numbers(numbers: CardNumbers) -> dict[str, Any]:
    recall = {f"recall@{k}": numbers.recall.get(f"recall@{k}") for k in (1, 10)}
    return {"step": numbers.step, "epoch": numbers.epoch, **recall, "threshold": numbers.threshold}


def _iso(date: datetime | None) -> str | None:
    return None if date is None else date.isoformat(timespec="seconds")


def _table(records: Sequence[dict[str, Any]]) -> str:
    from tabulate import tabulate

    cells = [[_cell(name, value) for name, value in record.items()] for record in records]
    sides = [
        "right" if any(isinstance(record[name], int | float) for record in records) else "left" for name in records[0]
    ]
    return tabulate(cells, list(records[0]), tablefmt="plain", disable_numparse=True, colalign=sides)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name == "bytes":
        return f"{value / 1e6:.1f} MB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value)
    if name == "commit":
        return str(value)[:8]
    if name == "date":
        return str(value)[:16].replace("T", " ")
    return f"{value:.2f}" if name == "epoch" else f"{value:.3f}" if isinstance(value, float) else str(value)
