"""The command `qtr`. Every command is one call into the library; what is heavy is imported when a command runs."""

from __future__ import annotations

import json
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
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not type(error).__module__.startswith("qwen_term_retrieval."):
            raise
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
        accelerate launch scripts/train.py --dataset packs/mine --output_dir outputs/mine
        qtr evaluate outputs/mine packs/mine
        qtr search outputs/mine glossary.txt clip.wav

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


@app.command()
def synthesize(
    glossary: Annotated[Path, typer.Argument(help="Glossary (.txt, .csv, .json, .parquet …).")],
    out: Annotated[Path, typer.Argument(help="Folder to make; `qtr pack` reads it.")],
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

    _log(quiet)
    with plain_errors():
        report = synthesize_glossary(
            glossary,
            out,
            voices_per_term=voices_per_term,
            overwrite=overwrite,
            num_workers=workers,
            show_progress=not quiet,
        )
    typer.echo(f"{out}: {report.summary()}")


@app.command()
def search(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.")],
    glossary: Annotated[
        Path, typer.Argument(help="Glossary (.txt, .csv, .json, .parquet …) or a folder of `qtr index`.")
    ],
    clips: Annotated[list[Path], typer.Argument(help="Audio files.")],
    top_k: Annotated[int, typer.Option(min=1, help="Most terms to show for a file.")] = 10,
    threshold: Annotated[float | None, typer.Option(help="Lowest score; default the model's calibrated one.")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a match.")] = False,
    quiet: Quiet = False,
) -> None:
    """Find the terms of a glossary in recordings, each where it was heard best.

    Without a threshold, the nearest terms come whether they were said or not.

    For example:

        qtr search outputs/demo glossary.txt clip.wav
        qtr search me/model glossary.txt *.wav --threshold 0.6 --json
    """
    from qwen_term_retrieval.retrieval.retriever import TermRetriever

    _log(quiet)
    with plain_errors():
        retriever = TermRetriever.from_pretrained(model)
        retriever.index(glossary)
        answers = retriever.search_batch(clips, top_k=top_k, threshold=threshold)
    for clip, matches in zip(clips, answers, strict=True):
        if not json_lines:
            typer.echo(f"{clip}: {len(matches)} terms")
        for match in matches:
            found = {"term": match.term, "score": round(match.score, 4), "start": match.start, "end": match.end}
            line = f"  {match.term:<40} {match.score:6.3f} {match.start:9.2f} – {match.end:.2f} s"
            typer.echo(json.dumps({"clip": str(clip), **found}, ensure_ascii=False) if json_lines else line)


@app.command()
def index(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.")],
    glossary: Annotated[Path, typer.Argument(help="Glossary file.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the index that is at OUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Embed a large glossary once, for searches with the same model.

    For example:

        qtr index outputs/demo icd10.csv indexes/icd10
        qtr search outputs/demo indexes/icd10 clip.wav
    """
    from qwen_term_retrieval.retrieval.retriever import TermRetriever

    _log(quiet)
    with plain_errors():
        retriever = TermRetriever.from_pretrained(model)
        retriever.index(glossary)
        retriever.save_index(out, overwrite=overwrite)
    typer.echo(f"{out}: {len(retriever.term_index)} terms")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.")],
    dataset: Annotated[str, typer.Argument(help="Pack, corpus folder or Hub id.")],
    split: Annotated[str, typer.Option(help="Split to evaluate.")] = "test",
    glossary: Annotated[Path | None, typer.Option(help="Terms to find; default: all terms of the split.")] = None,
    distractors: Annotated[Path | None, typer.Option(help="Glossary of terms to tell apart from them.")] = None,
    train_split: Annotated[str, typer.Option(help="Its terms are the seen ones; '' reports no such groups.")] = "train",
    threshold: Annotated[float | None, typer.Option(help="Lowest score; default the model's calibrated one.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file for all metrics.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG for recall over k.")] = None,
    quiet: Quiet = False,
) -> None:
    """Recall of a model on a split, searched as `qtr search` does; with a threshold also precision and false alarms.

    For example:

        qtr evaluate outputs/demo builders/term_audio
        qtr evaluate outputs/demo packs/mine --split validation --distractors wordnet.txt --output eval.json
    """
    from qwen_term_retrieval.evaluation.evaluator import evaluate_dataset
    from qwen_term_retrieval.evaluation.report import plot_recall, recall_table, threshold_line

    _log(quiet)
    with plain_errors():
        metrics = evaluate_dataset(
            model,
            dataset,
            split=split,
            glossary=glossary,
            distractors=distractors,
            train_split=train_split or None,
            threshold=threshold,
        )
    typer.echo(f"{int(metrics['clips'])} clips, a bank of {int(metrics['bank'])} terms\n\n{recall_table(metrics)}\n")
    typer.echo(threshold_line(metrics))
    if output is not None:
        output.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    if plot is not None:
        plot_recall(metrics, plot)


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="Folder of a trained model; its config takes the threshold.")],
    dataset: Annotated[str, typer.Argument(help="Pack, corpus folder or Hub id.")],
    glossary: Annotated[Path, typer.Argument(help="Glossary as large as the one in use, or a folder of `qtr index`.")],
    split: Annotated[str, typer.Option(help="Split with known terms, and clips without any.")] = "validation",
    target_precision: Annotated[float | None, typer.Option(help="Precision to reach; default: the best F1.")] = None,
    quiet: Quiet = False,
) -> None:
    """Choose the score from which a term counts as heard, and store it in the model.

    For example:

        qtr calibrate outputs/demo builders/term_audio glossary.txt --target-precision 0.9
    """
    from qwen_term_retrieval.evaluation.evaluator import load_split
    from qwen_term_retrieval.retrieval import calibration
    from qwen_term_retrieval.retrieval.retriever import TermRetriever

    _log(quiet)
    with plain_errors():
        if not Path(model).is_dir():
            raise FileNotFoundError(f"{model} is no folder: download the model first, its config is written to")
        retriever = TermRetriever.from_pretrained(model)
        retriever.index(glossary)
        chosen = calibration.calibrate(retriever, load_split(dataset, split), target_precision=target_precision)
        retriever.model.config.save_pretrained(model)
    typer.echo(
        f"threshold {chosen.threshold:.4f}: precision {chosen.precision:.3f}, recall {chosen.recall:.3f}, "
        f"F1 {chosen.f1:.3f} on {split!r}"
    )


if __name__ == "__main__":
    app()
