"""`qtr index`, `evaluate`, `report` and `calibrate`: a glossary embedded, and a model measured and set."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen_term_retrieval.cli.app import MODELS, Quiet, app, log_to_terminal

if TYPE_CHECKING:
    from qwen_term_retrieval.text.glossary import Glossary

logger = logging.getLogger(__name__)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Folder, Hub id or name of a trained model.")]
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="Pack, corpus folder or Hub id.")]
Revision = Annotated[
    str | None, typer.Option(help="Of a model on the Hub: a tag, branch or commit that `qtr models` lists.")
]
Threshold = Annotated[
    float | None,
    typer.Option(
        min=-1,
        max=1,
        help="Lowest probability, or cosine of a model that verifies nothing; default the model's calibrated one.",
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; default a GPU, if there is one.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default as the model is.")]
EvaluatedSplit = Annotated[str, typer.Option(help="Split to evaluate.")]
Wanted = Annotated[Path | None, typer.Option(help="Terms to find; default: all terms of the split.")]
Distractors = Annotated[Path | None, typer.Option(help="Glossary of terms to tell apart from them.")]
TrainSplit = Annotated[
    str | None,
    typer.Option(help="Its terms are the seen ones; default train, where there is one; '' for no such groups."),
]


@app.command(rich_help_panel=MODELS)
def index(
    model: Model,
    glossary: Annotated[Path, typer.Argument(metavar="GLOSSARY", help="Glossary file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    hold: Annotated[
        str,
        typer.Option(
            help="How vectors are held: `float32`, `int8` (both exact), `ann` (approximate; takes usearch), or `auto`."
        ),
    ] = "auto",
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the index that is at OUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Embed a large glossary once, for searches with the same model.

    `qtr search` and `qtr calibrate` take the folder in place of a glossary; another model refuses it. A run that was
    killed goes on where it stopped when the same command is given again. `qtr verify` finds any damage.

    For example:

        qtr index outputs/demo icd10.csv indexes/icd10
        qtr search indexes/icd10 clip.wav --model outputs/demo
        qtr verify indexes/icd10
    """
    from qwen_term_retrieval.retrieval.indexes.folder import check_target
    from qwen_term_retrieval.retrieval.retriever import TermRetriever
    from qwen_term_retrieval.storage.atomic import check_writable

    log_with_libraries(quiet)
    check_target(out, overwrite)
    check_writable(out)
    terms = terms_of(glossary)
    if isinstance(terms, Path):
        raise IsADirectoryError(f"{terms} is a folder; give a glossary file")
    retriever = TermRetriever.from_pretrained(model, revision=revision, device=device, dtype=dtype)
    index = retriever.index_to(
        out,
        terms,
        hold=hold,  # type: ignore[arg-type]  # checked there
        overwrite=overwrite,
        show_progress=not quiet,
    )
    typer.echo(f"{out}: {len(index)} terms, held in {index.held}")


@app.command(rich_help_panel=MODELS)
def evaluate(
    model: Model,
    dataset: Dataset,
    split: EvaluatedSplit = "test",
    glossary: Wanted = None,
    distractors: Distractors = None,
    train_split: TrainSplit = None,
    threshold: Threshold = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
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
    from qwen_term_retrieval.evaluation.dataset_evaluation import evaluate_dataset
    from qwen_term_retrieval.evaluation.report import plot_recall, recall_table, threshold_line

    log_with_libraries(quiet)
    for file in filter(None, (output, plot)):
        check_output(file)
    metrics = evaluate_dataset(
        model,
        dataset,
        revision=revision,
        device=device,
        dtype=dtype,
        split=split,
        glossary=glossary,
        distractors=distractors,
        train_split=train_split,
        threshold=threshold,
        show_progress=not quiet,
    )
    typer.echo(f"{int(metrics['clips'])} clips, a bank of {int(metrics['bank'])} terms\n\n{recall_table(metrics)}\n")
    typer.echo(threshold_line(metrics))
    if output is not None:
        output.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    if plot is not None:
        plot_recall(metrics, plot, title=f"{Path(model).name} on {Path(dataset).name}, {split}")


@app.command(rich_help_panel=MODELS)
def report(
    model: Model,
    dataset: Dataset,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; report.html is the page.")],
    split: EvaluatedSplit = "test",
    glossary: Wanted = None,
    distractors: Distractors = None,
    train_split: TrainSplit = None,
    threshold: Threshold = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the report that is at OUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a model and write a page: tables, pictures, and the worst misses and false alarms to listen to.

    With `--distractors`, recall is drawn among 1,000, 10,000, … terms; of the output folder of a run, its training too.
    A model with a phoneme head has some terms drawn sound by sound.

    For example:

        qtr report outputs/demo builders/term_audio reports/demo
        qtr report outputs/mine packs/mine reports/mine --distractors wordnet.txt
    """
    from qwen_term_retrieval.evaluation import html_report
    from qwen_term_retrieval.evaluation.dataset_evaluation import dataset_evaluator
    from qwen_term_retrieval.evaluation.report import recall_table
    from qwen_term_retrieval.retrieval.retriever import TermRetriever

    log_with_libraries(quiet)
    html_report.check_report(out, overwrite)
    evaluator = dataset_evaluator(
        dataset,
        split=split,
        glossary=glossary,
        distractors=distractors,
        train_split=train_split,
        threshold=threshold,
        bank_sizes=html_report.BANK_SIZES,
    )
    retriever = TermRetriever.from_pretrained(model, revision=revision, device=device, dtype=dtype)
    evaluation = evaluator.run(retriever, show_progress=not quiet)
    page = html_report.write_report(
        evaluator,
        evaluation,
        out,
        title=f"{model} on {dataset}, split {split}",
        model=retriever.model,
        trainer_state=html_report.read_trainer_state(model),
        overwrite=overwrite,
    )
    typer.echo(f"{recall_table(evaluation.metrics)}\n\n{page}")


@app.command(rich_help_panel=MODELS)
def calibrate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a trained model; its config takes the threshold.")
    ],
    dataset: Dataset,
    glossary: Annotated[
        Path,
        typer.Argument(metavar="GLOSSARY", help="Glossary as large as the one in use, or a folder of `qtr index`."),
    ],
    split: Annotated[str, typer.Option(help="Split with known terms, and clips without any.")] = "validation",
    target_precision: Annotated[
        float | None, typer.Option(min=0, max=1, help="Precision to reach; default: the best F1.")
    ] = None,
    max_false_alarms_per_hour: Annotated[
        float | None, typer.Option(min=0, help="False alarms to stay below; for a model with a phoneme head.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the threshold, leave the model as it is.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Choose from when a term counts as heard, and store it in the model and its card.

    A model with a phoneme head learns here how what it hears becomes a probability, which holds for glossaries of other
    sizes too: let the glossary hold many terms that the clips do not say. Of one without, the score is chosen, for
    glossaries of this size. From then on `qtr search` answers with the terms that reach it, and with none where nothing
    was said.

    For example:

        qtr calibrate outputs/demo builders/term_audio glossary.txt --target-precision 0.9
    """
    from qwen_term_retrieval.models.model_card import with_threshold
    from qwen_term_retrieval.packs.loading import load_split
    from qwen_term_retrieval.retrieval.calibration import calibrate as choose_cosine
    from qwen_term_retrieval.retrieval.retriever import TermRetriever
    from qwen_term_retrieval.retrieval.verifier_fitting import calibrate_verifier

    if target_precision is not None and not 0 < target_precision <= 1:
        raise ValueError(f"--target-precision must be above 0 and at most 1, not {target_precision}")
    log_with_libraries(quiet)
    if not Path(model).is_dir():
        raise FileNotFoundError(f"{model} is no folder: download the model first, its config is written to")
    terms, rows = terms_of(glossary), load_split(dataset, split)
    retriever = TermRetriever.from_pretrained(model, device=device, dtype=dtype)
    retriever.index(terms, show_progress=not quiet)
    previous = retriever.threshold
    if retriever.model.phoneme_head is not None:
        chosen = calibrate_verifier(
            retriever,
            rows,
            target_precision=target_precision,
            max_false_alarms_per_hour=max_false_alarms_per_hour,
            show_progress=not quiet,
        )
    elif max_false_alarms_per_hour is not None:
        raise ValueError("--max-false-alarms-per-hour takes a model with a phoneme head")
    else:
        chosen = choose_cosine(retriever, rows, target_precision=target_precision, show_progress=not quiet)
    before = "none" if previous is None else f"{previous:.4f}"
    typer.echo(
        f"threshold {before} → {chosen.threshold:.4f}: precision {chosen.precision:.3f}, recall {chosen.recall:.3f}, "
        f"F1 {chosen.f1:.3f} on {split!r}{'; a dry run, nothing was written' if dry_run else ''}"
    )
    if dry_run:
        return
    retriever.model.config.save_pretrained(model)
    card = Path(model, "README.md")
    if card.is_file():
        row = {"dataset": dataset, "split": split, **asdict(chosen)}
        del row["threshold"]
        text = with_threshold(card.read_text(encoding="utf-8"), retriever.model.config, [row], previous)
        card.write_text(text, encoding="utf-8")


def terms_of(glossary: Path) -> Glossary | Path:
    """The terms of a file, read before the model, which a wrong name should not cost; or the folder of an index."""
    from qwen_term_retrieval.text.glossary import Glossary

    return glossary if glossary.is_dir() else Glossary.from_file(glossary)


def check_output(file: Path) -> None:
    """Refuse before the work what could not be written after it."""
    from qwen_term_retrieval.storage.atomic import check_writable

    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder; give the name of a file")
    if file.suffix == ".png" and find_spec("matplotlib") is None:
        raise ImportError("a picture is drawn with matplotlib: pip install 'qwen_term_retrieval[report]'")
    check_writable(file)


def log_with_libraries(quiet: bool) -> None:
    """The libraries' own bars too, of weights and datasets that are read, are drawn in a terminal, unless `quiet`."""
    import datasets
    from transformers.utils import logging as transformers_logging

    log_to_terminal(quiet)
    if quiet or not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
