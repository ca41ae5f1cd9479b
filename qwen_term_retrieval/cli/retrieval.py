"""`qtr search`, `index`, `evaluate` and `calibrate`: what a trained model is used for."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen_term_retrieval.cli.app import Quiet, app, log_to_terminal

if TYPE_CHECKING:
    from qwen_term_retrieval.retrieval.matches import TermMatch
    from qwen_term_retrieval.text.glossary import Glossary

Revision = Annotated[
    str | None, typer.Option(help="Of a model on the Hub: a tag, branch or commit that `qtr models` lists.")
]


@app.command()
def search(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.")],
    glossary: Annotated[
        Path, typer.Argument(help="Glossary (.txt, .csv, .json, .parquet …) or a folder of `qtr index`.")
    ],
    clips: Annotated[list[Path], typer.Argument(help="Audio files.")],
    top_k: Annotated[int, typer.Option(min=1, help="Most terms to show for a file.")] = 10,
    threshold: Annotated[float | None, typer.Option(help="Lowest score; default the model's calibrated one.")] = None,
    revision: Revision = None,
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

    _log_to_terminal(quiet)
    terms = _terms_of(glossary)
    retriever = TermRetriever.from_pretrained(model, revision=revision)
    retriever.index(terms, show_progress=not quiet)
    # All of them, to show by how much the best one misses the threshold.
    answers = retriever.search_batch(clips, top_k=top_k, threshold=-1.0, show_progress=not quiet)
    lowest = retriever.threshold if threshold is None else threshold
    for clip, matches in zip(clips, answers, strict=True):
        heard = [match for match in matches if lowest is None or match.score >= lowest]
        if not json_lines:
            typer.echo(f"{clip}: {len(heard)} terms{_near_miss(matches, lowest)}")
        for match in heard:
            found = {"term": match.term, "score": round(match.score, 4), "start": match.start, "end": match.end}
            found |= {"language": match.language} if match.language else {}
            shown = f"{match.term} ({match.language})" if match.language else match.term
            line = f"  {shown:<40} {match.score:6.3f} {match.start:9.2f} – {match.end:.2f} s"
            typer.echo(json.dumps({"clip": str(clip), **found}, ensure_ascii=False) if json_lines else line)


def _near_miss(matches: Sequence[TermMatch], threshold: float | None) -> str:
    if threshold is None or not matches or matches[0].score >= threshold:
        return ""
    return f" (best: {matches[0].term} {matches[0].score:.3f}, threshold {threshold:.3f})"


@app.command()
def index(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.")],
    glossary: Annotated[Path, typer.Argument(help="Glossary file.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    revision: Revision = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the index that is at OUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Embed a large glossary once, for searches with the same model.

    `qtr search` and `qtr calibrate` take the folder in place of a glossary; another model refuses it.

    For example:

        qtr index outputs/demo icd10.csv indexes/icd10
        qtr search outputs/demo indexes/icd10 clip.wav
    """
    from qwen_term_retrieval.retrieval.index_folder import check_target
    from qwen_term_retrieval.retrieval.retriever import TermRetriever

    _log_to_terminal(quiet)
    check_target(out, overwrite)
    terms = _terms_of(glossary)
    retriever = TermRetriever.from_pretrained(model, revision=revision)
    retriever.index(terms, show_progress=not quiet)
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
    revision: Revision = None,
    output: Annotated[Path | None, typer.Option(help="JSON file for all metrics.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG for recall over k.")] = None,
    quiet: Quiet = False,
) -> None:
    """Recall of a model on a split, searched as `qtr search` does; with a threshold also precision and false alarms.

    Among all terms that are said in the split, and those of `--distractors`; seen and unseen in training apart.

    For example:

        qtr evaluate outputs/demo builders/term_audio
        qtr evaluate outputs/demo packs/mine --split validation --distractors wordnet.txt --output eval.json
    """
    from qwen_term_retrieval.evaluation.evaluator import evaluate_dataset
    from qwen_term_retrieval.evaluation.report import plot_recall, recall_table, threshold_line

    _log_to_terminal(quiet)
    metrics = evaluate_dataset(
        model,
        dataset,
        revision=revision,
        split=split,
        glossary=glossary,
        distractors=distractors,
        train_split=train_split or None,
        threshold=threshold,
        show_progress=not quiet,
    )
    typer.echo(f"{int(metrics['clips'])} clips, a bank of {int(metrics['bank'])} terms\n\n{recall_table(metrics)}\n")
    typer.echo(threshold_line(metrics))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
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
    """Choose the score from which a term counts as heard, and store it in the model and its card.

    From then on `qtr search` answers with the terms that reach it, and with none where nothing was said.

    For example:

        qtr calibrate outputs/demo builders/term_audio glossary.txt --target-precision 0.9
    """
    from qwen_term_retrieval.audio.loading import load_split
    from qwen_term_retrieval.models.model_card import with_threshold
    from qwen_term_retrieval.retrieval import calibration
    from qwen_term_retrieval.retrieval.retriever import TermRetriever

    _log_to_terminal(quiet)
    if not Path(model).is_dir():
        raise FileNotFoundError(f"{model} is no folder: download the model first, its config is written to")
    terms, rows = _terms_of(glossary), load_split(dataset, split)
    retriever = TermRetriever.from_pretrained(model)
    retriever.index(terms, show_progress=not quiet)
    chosen = calibration.calibrate(retriever, rows, target_precision=target_precision, show_progress=not quiet)
    retriever.model.config.save_pretrained(model)
    card = Path(model, "README.md")
    if card.is_file():
        row = {"dataset": dataset, "split": split, **asdict(chosen)}
        del row["threshold"]
        text = with_threshold(card.read_text(encoding="utf-8"), retriever.model.config, [row])
        card.write_text(text, encoding="utf-8")
    typer.echo(
        f"threshold {chosen.threshold:.4f}: precision {chosen.precision:.3f}, recall {chosen.recall:.3f}, "
        f"F1 {chosen.f1:.3f} on {split!r}"
    )


def _terms_of(glossary: Path) -> Glossary | Path:
    """Of a file its terms, read before the model, which a wrong name should not cost; of an index its folder."""
    from qwen_term_retrieval.text.glossary import Glossary

    return glossary if glossary.is_dir() else Glossary.from_file(glossary)


def _log_to_terminal(quiet: bool) -> None:
    """The libraries' own bars too, of weights and datasets that are read, are drawn in a terminal, unless `quiet`."""
    import datasets
    from transformers.utils import logging as transformers_logging

    log_to_terminal(quiet)
    if quiet or not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
