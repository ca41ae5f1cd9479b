"""`qtr search`: the terms of a glossary in recordings."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from qwen_term_retrieval.cli.app import MODELS, Quiet, app
from qwen_term_retrieval.cli.argument_order import glossary_and_clips
from qwen_term_retrieval.cli.retrieval import Device, Dtype, Revision, Threshold, log_with_libraries, terms_of

logger = logging.getLogger(__name__)

FirstStage = Annotated[
    str, typer.Option(help="Who proposes terms: `windows`, `sounds` (all terms by their pronunciations) or `both`.")
]
Verify = Annotated[
    str,
    typer.Option(
        help="`auto` listens again where it can, `sounds` insists, `spelling` asks a decoder too, `none`: cosines."
    ),
]
Channel = Annotated[
    str, typer.Option(help="`mix` of all channels, `left`, `right`, or `each` as a recording of its own.")
]
Format = Annotated[
    str,
    typer.Option(
        "--format", help="`text`, `json`, `jsonl`, `csv`, `srt`, `vtt`, `audacity` labels, Praat `textgrid` or `rttm`."
    ),
]


@app.command(rich_help_panel=MODELS)
def search(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="GLOSSARY AUDIO…",
            help="Glossary (.txt, .csv, .json, .parquet …) or a folder of `qtr index`; then recordings: files, URLs, "
            "folders and all below, patterns.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Name (see `qtr models`), folder or Hub id; default: the one that came along."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Most terms of a clip, or of a second of a recording.")] = 10,
    threshold: Threshold = None,
    target_precision: Annotated[
        float | None, typer.Option(min=0, max=1, help="The threshold that kept this precision when it was fitted.")
    ] = None,
    max_false_alarms_per_hour: Annotated[
        float | None, typer.Option(min=0, help="The threshold that let no more through when it was fitted.")
    ] = None,
    first_stage: FirstStage = "windows",
    verify: Verify = "auto",
    each_time: Annotated[
        bool, typer.Option("--each-time", help="Show a term each time it is said, in clips too; takes a threshold.")
    ] = False,
    best: Annotated[bool, typer.Option("--best", help="Show a term once, where it was heard best.")] = False,
    channel: Channel = "mix",
    track: Annotated[
        int | None, typer.Option(min=0, help="Audio track of a film, counted from 0; default the film's own choice.")
    ] = None,
    on_error: Annotated[str, typer.Option(help="`raise`, or `skip` recordings that cannot be heard.")] = "raise",
    format: Format = "text",
    json_lines: Annotated[bool, typer.Option("--json", help="As --format jsonl: one JSON object a match.")] = False,
    out: Annotated[
        str | None,
        typer.Option(help="File for the answers, or FOLDER/ for a file a recording; default the terminal."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are at --out.")] = False,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Find the terms of a glossary in recordings.

    In a recording of more than 8 s a term is shown each time it is said, while the rest is read; in a clip, and with
    `--best`, once, where it was heard best. A model with a verifier gives each term a probability, one without a
    cosine. Without a threshold, given or in the model, the nearest terms of each recording come whether they were said
    or not. Recordings are opened before the model is.

    For example:

        qtr search glossary.txt clip.wav
        qtr search glossary.txt recordings/ --threshold 0.6 --on-error skip --format csv --out found.csv
        qtr search glossary.txt lecture.mp4 --model outputs/mine --format srt --out subtitles/
    """
    from qwen_term_retrieval.retrieval.formats.formats import format_named
    from qwen_term_retrieval.retrieval.formats.writing import targets_of, write_answers
    from qwen_term_retrieval.retrieval.recordings.inputs import Skipped, open_recordings
    from qwen_term_retrieval.retrieval.recordings.searching import search_recordings
    from qwen_term_retrieval.retrieval.retriever import TermRetriever

    log_with_libraries(quiet)
    model, glossary, clips = glossary_and_clips(arguments, model, quiet)
    if each_time and best:
        raise ValueError("--each-time and --best: give one of them")
    if json_lines and format not in ("text", "jsonl"):
        raise ValueError(f"--json is --format jsonl, and --format {format} was given: give one of them")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"--on-error must be raise or skip, not {on_error}")
    written = format_named("jsonl" if json_lines else format)
    terms, skipped = terms_of(glossary), Skipped()
    recordings, lines = open_recordings(
        clips,
        channel=channel,  # type: ignore[arg-type]  # checked there
        track=track,
        on_error=on_error,  # type: ignore[arg-type]
        skipped=skipped,
    )
    for line in lines:
        logger.warning("%s", line)
    targets = targets_of(recordings, written, out, overwrite=overwrite)
    retriever = TermRetriever.from_pretrained(
        model,
        revision=revision,
        first_stage=first_stage,  # type: ignore[arg-type]
        verify=verify,  # type: ignore[arg-type]
        device=device,
        dtype=dtype,
    )
    if threshold is None:
        threshold = retriever.threshold_for(target_precision, max_false_alarms_per_hour)
    elif target_precision is not None or max_false_alarms_per_hour is not None:
        raise ValueError("--threshold says by itself what is let through: leave out --target-precision and the like")
    lowest = retriever.threshold if threshold is None else threshold
    if each_time and lowest is None:
        raise ValueError("--each-time needs --threshold, or a model that `qtr calibrate` has given one")
    retriever.index(terms, show_progress=not quiet)
    told = search_recordings(
        retriever,
        recordings,
        top_k=top_k,
        threshold=lowest,
        times="each" if each_time else "best" if best else "auto",
        on_error=on_error,  # type: ignore[arg-type]
        skipped=skipped,
        show_progress=not quiet,
    )
    num_heard = write_answers(told, written, targets, lambda text: typer.echo(text, nl=False))
    if skipped:
        total = num_heard + len(skipped)
        typer.secho(f"skipped {len(skipped)} of {total} recordings, which cannot be heard", fg="yellow", err=True)
        if not num_heard:
            raise typer.Exit(1)
