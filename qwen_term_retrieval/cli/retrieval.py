"""`qtr search`, `index`, `evaluate` and `calibrate`: what a trained model is used for."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen_term_retrieval.cli.app import MODELS, Quiet, app, log_to_terminal
from qwen_term_retrieval.cli.argument_order import glossary_and_clips

if TYPE_CHECKING:
    from qwen_term_retrieval.retrieval.matches import TermMatch
    from qwen_term_retrieval.retrieval.recordings import Heard
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
FirstStage = Annotated[
    str, typer.Option(help="Who proposes terms: `windows`, `sounds` (all terms by their pronunciations) or `both`.")
]
Verify = Annotated[
    str,
    typer.Option(
        help="`auto` listens again where it can, `sounds` insists, `spelling` asks a decoder too, `none`: cosines."
    ),
]
EvaluatedSplit = Annotated[str, typer.Option(help="Split to evaluate.")]
Wanted = Annotated[Path | None, typer.Option(help="Terms to find; default: all terms of the split.")]
Distractors = Annotated[Path | None, typer.Option(help="Glossary of terms to tell apart from them.")]
TrainSplit = Annotated[
    str | None,
    typer.Option(help="Its terms are the seen ones; default train, where there is one; '' for no such groups."),
]


@app.command(rich_help_panel=MODELS)
def search(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="GLOSSARY AUDIO…",
            help="Glossary (.txt, .csv, .json, .parquet …) or a folder of `qtr index`; then audio files.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Name (see `qtr models`), folder or Hub id; default: the one that came along."),
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="Most terms to show for a file; with --each-time, for a second of it.")
    ] = 10,
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
        bool, typer.Option("--each-time", help="Show a term each time it is said, in order; takes a threshold.")
    ] = False,
    revision: Revision = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a match.")] = False,
    quiet: Quiet = False,
) -> None:
    """Find the terms of a glossary in recordings, each where it was heard best.

    A model with a verifier gives each term a probability, one without a cosine. Without a threshold, given or in the
    model, the nearest terms come whether they were said or not. Files are opened before the model is, and
    searched 32 at a time: what was found in those is shown before the next are searched. With `--each-time` a term is
    shown as soon as it is heard.

    For example:

        qtr search glossary.txt clip.wav
        qtr search glossary.txt *.wav --model me/model --threshold 0.6 --json
        qtr search glossary.txt lecture.mp3 --model outputs/mine --each-time
    """
    from qwen_term_retrieval.retrieval.recordings import check_recordings, hear_each_time, search_recordings
    from qwen_term_retrieval.retrieval.retriever import TermRetriever

    log_with_libraries(quiet)
    model, glossary, clips = glossary_and_clips(arguments, model, quiet)
    terms = terms_of(glossary)
    check_recordings(clips)
    retriever = TermRetriever.from_pretrained(
        model,
        revision=revision,
        first_stage=first_stage,  # type: ignore[arg-type]  # checked there
        verify=verify,  # type: ignore[arg-type]
    )
    if threshold is None:
        threshold = retriever.threshold_for(target_precision, max_false_alarms_per_hour)
    elif target_precision is not None or max_false_alarms_per_hour is not None:
        raise ValueError("--threshold says by itself what is let through: leave out --target-precision and the like")
    lowest = retriever.threshold if threshold is None else threshold
    if each_time and lowest is None:
        raise ValueError("--each-time needs --threshold, or a model that `qtr calibrate` has given one")
    retriever.index(terms, show_progress=not quiet)

    def shown(clip: Path, match: TermMatch) -> str:
        return _json_line(clip, match) if json_lines else _line(match)

    if each_time:
        for clip in clips:
            if not json_lines:
                typer.echo(f"{clip}:")
            for match in hear_each_time(retriever, clip, top_k=top_k, threshold=lowest):
                typer.echo(shown(clip, match))
        return
    for heard in search_recordings(retriever, clips, top_k=top_k, threshold=lowest, show_progress=not quiet):
        if not json_lines:
            typer.echo(f"{heard.recording}: {_count(heard.matches)}{_near_miss(heard, lowest)}")
        for match in heard.matches:
            typer.echo(shown(heard.recording, match))


def _json_line(clip: Path, match: TermMatch) -> str:
    found: dict[str, object] = {"clip": str(clip), "term": match.term, "score": round(match.score, 4)}
    found |= {} if match.probability is None else {"probability": round(match.probability, 4)}
    found |= {"start": match.start, "end": match.end} | ({"language": match.language} if match.language else {})
    return json.dumps(found, ensure_ascii=False)


def _line(match: TermMatch) -> str:
    shown = f"{match.term} ({match.language})" if match.language else match.term
    return f"  {shown:<40} {match.confidence:6.3f} {match.start:9.2f} – {match.end:.2f} s"


def _count(heard: Sequence[TermMatch]) -> str:
    return "1 term" if len(heard) == 1 else f"{len(heard)} terms"


def _near_miss(heard: Heard, threshold: float | None) -> str:
    nearest = heard.nearest
    if threshold is None or nearest is None or heard.matches:
        return ""
    return f" (best: {nearest.term} {nearest.confidence:.3f}, threshold {threshold:.3f})"


@app.command(rich_help_panel=MODELS)
def index(
    model: Model,
    glossary: Annotated[Path, typer.Argument(metavar="GLOSSARY", help="Glossary file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    revision: Revision = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the index that is at OUT.")] = False,
    quiet: Quiet = False,
) -> None:
    """Embed a large glossary once, for searches with the same model.

    `qtr search` and `qtr calibrate` take the folder in place of a glossary; another model refuses it.

    For example:

        qtr index outputs/demo icd10.csv indexes/icd10
        qtr search indexes/icd10 clip.wav --model outputs/demo
    """
    from qwen_term_retrieval.retrieval.index_folder import check_target
    from qwen_term_retrieval.retrieval.retriever import TermRetriever

    log_with_libraries(quiet)
    check_target(out, overwrite)
    terms = terms_of(glossary)
    retriever = TermRetriever.from_pretrained(model, revision=revision)
    retriever.index(terms, show_progress=not quiet)
    retriever.save_index(out, overwrite=overwrite)
    typer.echo(f"{out}: {len(retriever.term_index)} terms")


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
    retriever = TermRetriever.from_pretrained(model, revision=revision)
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
    retriever = TermRetriever.from_pretrained(model)
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
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder; give the name of a file")
    if file.suffix == ".png" and find_spec("matplotlib") is None:
        raise ImportError("a picture is drawn with matplotlib: pip install 'qwen_term_retrieval[report]'")
    file.parent.mkdir(parents=True, exist_ok=True)


def log_with_libraries(quiet: bool) -> None:
    """The libraries' own bars too, of weights and datasets that are read, are drawn in a terminal, unless `quiet`."""
    import datasets
    from transformers.utils import logging as transformers_logging

    log_to_terminal(quiet)
    if quiet or not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
