"""One page on how well a model finds terms: tables, pictures, and the worst misses and false alarms to listen to.

Where the model hears sounds, some terms are drawn beside them: what was found, missed and falsely found.

A folder with `report.html`, the pictures and clips that it shows, and `metrics.json`. It is written beside its place
and renamed, so it is there whole or not at all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jinja2 import Environment, FileSystemLoader
from numpy.typing import NDArray

from qwen_term_retrieval.audio.decoding import SAMPLING_RATE, clip_pcm
from qwen_term_retrieval.errors import BadAudioError, VerifierError
from qwen_term_retrieval.evaluation.alignment_picture import draw_alignment
from qwen_term_retrieval.evaluation.evaluator import Evaluation, RetrievalEvaluator
from qwen_term_retrieval.evaluation.report import GROUPS, threshold_line
from qwen_term_retrieval.evaluation.report_pictures import draw_precision_recall, draw_recall_by_bank, draw_scores
from qwen_term_retrieval.evaluation.training_curves import draw_training_curves
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.retrieval.calibration import gold_ids, precision_recall_curve, unlabelled_ids
from qwen_term_retrieval.retrieval.explaining import align_term
from qwen_term_retrieval.retrieval.matches import TermMatch
from qwen_term_retrieval.storage.staging import check_free

PAGE = "report.html"
METRICS = "metrics.json"
# Only a report has it: others have pages and metrics of these names too.
MARK = ".qtr-report"
BANK_SIZES = (1, 1_000, 10_000, 100_000, 1_000_000)
MOST_SHOWN = 20
# Of each group; a picture is about 150 kB.
MOST_ALIGNED = 3
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def check_report(folder: str | Path, overwrite: bool = False) -> None:
    """Raise where a report cannot be written, before the work of an evaluation.

    Raises:
        FileExistsError: the folder holds something else, or a report and `overwrite` is off.
        ImportError: matplotlib is missing.
    """
    folder = Path(folder)
    if find_spec("matplotlib") is None:
        raise ImportError("a report is drawn with matplotlib: pip install 'qwen_term_retrieval[report]'")
    check_free(folder, "a report", MARK, overwrite=overwrite)


def write_report(
    evaluator: RetrievalEvaluator,
    evaluation: Evaluation,
    folder: str | Path,
    *,
    title: str = "Evaluation",
    model: TermRetrievalModel | None = None,
    trainer_state: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a report on an evaluation, and return the path of its page.

    Args:
        evaluator: its rows give texts and sound.
        evaluation: what its `run` returned.
        folder: to make.
        title: of the page.
        model: that was evaluated; if it hears sounds, some terms are drawn beside them.
        trainer_state: see `read_trainer_state`; without it there are no training curves.
        overwrite: replace the report that is there.

    Raises:
        FileExistsError, ImportError: see `check_report`.
    """
    check_report(folder, overwrite)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        new = Path(scratch) / "new"
        (new / "clips").mkdir(parents=True, mode=0o755)
        page = _page(evaluator, evaluation, new, title, model, trainer_state)
        (new / PAGE).write_text(page, encoding="utf-8")
        (new / MARK).touch()
        by_bank = {f"among {size} terms": metrics for size, metrics in evaluation.metrics_by_bank.items()}
        text = json.dumps(evaluation.metrics | by_bank, indent=2)
        (new / METRICS).write_text(text + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        new.rename(folder)
    return folder / PAGE


def read_trainer_state(model: str | Path) -> dict[str, Any] | None:
    """What a run logged, if `model` is its output folder or one of its checkpoints."""
    state = Path(model) / "trainer_state.json"
    return json.loads(state.read_text(encoding="utf-8")) if state.is_file() else None


def _page(
    evaluator: RetrievalEvaluator,
    evaluation: Evaluation,
    folder: Path,
    title: str,
    model: TermRetrievalModel | None,
    trainer_state: Mapping[str, Any] | None,
) -> str:
    judged = _judge_each(evaluator, evaluation)
    alarms = _worst_alarms(judged, evaluation.metrics.get("threshold", -1.0))
    return _TEMPLATES.get_template("report.html.jinja").render(
        title=title,
        metrics=evaluation.metrics,
        ks=evaluator.ks,
        groups=GROUPS,
        threshold=threshold_line(evaluation.metrics),
        pictures=_draw(evaluator, evaluation, judged, folder, trainer_state),
        num_missed=(evaluation.pairs.ranks > 1).sum(),
        num_pairs=len(evaluation.pairs.ranks),
        misses=[
            (_clip(evaluator, clip, folder), rank, [match for match, right in judged[clip] if not right][:3])
            for clip, rank in _worst_misses(evaluation)
        ],
        alarms=[(_clip(evaluator, clip, folder), match) for clip, match in alarms],
        aligned=_align_some(evaluator, model, _terms_to_align(evaluation, judged, alarms), folder),
    )


def _terms_to_align(
    evaluation: Evaluation,
    judged: Sequence[Sequence[tuple[TermMatch, bool]]],
    alarms: Sequence[tuple[int, TermMatch]],
) -> list[tuple[str, int, str, str | None]]:
    """What became of a term, the clip, the term and its language: the surest that stand first, the worst others."""
    right = [(clip, found[0][0]) for clip, found in enumerate(judged) if found and found[0][1]]
    surest = sorted(right, key=lambda each: -each[1].confidence)[:MOST_ALIGNED]
    # A term that is heard everywhere is shown once, where it is worst.
    false: dict[int, tuple[int, TermMatch]] = {}
    for clip, match in alarms:
        false.setdefault(match.term_id, (clip, match))
    places = _places_of_misses(evaluation)[:MOST_ALIGNED]
    wanted = set(evaluation.pairs.term_ids[places].tolist())
    terms = {term.term_id: term for term in evaluation.index.terms if term.term_id in wanted}
    missed = [(int(evaluation.clips[place]), terms[int(evaluation.pairs.term_ids[place])]) for place in places]
    return [
        *(("found", clip, match.term, match.language) for clip, match in surest),
        *(("missed", clip, term.text, term.language) for clip, term in missed),
        *(("falsely found", clip, match.term, match.language) for clip, match in list(false.values())[:MOST_ALIGNED]),
    ]


def _align_some(
    evaluator: RetrievalEvaluator,
    model: TermRetrievalModel | None,
    chosen: Sequence[tuple[str, int, str, str | None]],
    folder: Path,
) -> list[dict[str, Any]]:
    """Draw terms beside what was heard, if the model hears sounds; what cannot be drawn says why."""
    if model is None or model.phoneme_head is None:
        return []
    drawn = []
    for number, (group, clip, term, language) in enumerate(chosen):
        pcm, name, reason = clip_pcm(evaluator.rows[clip]), f"alignment_{number}.png", ""
        try:
            alignment = align_term(model, pcm, term, language, sampling_rate=SAMPLING_RATE)
        except (BadAudioError, VerifierError) as error:
            name, reason = "", str(error)
        else:
            draw_alignment(alignment, pcm, folder / name)
        shown = _clip(evaluator, clip, folder)
        drawn.append({"group": group, "clip": shown, "term": term, "picture": name, "reason": reason})
    return drawn


def _draw(
    evaluator: RetrievalEvaluator,
    evaluation: Evaluation,
    judged: Sequence[Sequence[tuple[TermMatch, bool]]],
    folder: Path,
    trainer_state: Mapping[str, Any] | None,
) -> dict[str, str]:
    """Draw what there is something to draw of; file names and what they show."""
    drawn = {}
    threshold = evaluation.metrics.get("threshold")
    num_gold = [len(gold_ids(row, evaluation.index)) for row in evaluator.rows_without_audio()]
    if len(evaluation.metrics_by_bank) > 1 and len(evaluation.pairs.ranks):
        draw_recall_by_bank(evaluation.metrics_by_bank, folder / "recall_by_bank.png", ks=evaluator.ks)
        drawn["recall_by_bank.png"] = "recall against bank size"
    matches = [match for found in judged for match in found]
    if matches and sum(num_gold):
        scores, right = zip(*((match.confidence, is_right) for match, is_right in matches), strict=True)
        curve = precision_recall_curve(scores, right, sum(num_gold))
        draw_precision_recall(curve, folder / "precision_recall.png", threshold=threshold)
        drawn["precision_recall.png"] = "precision against recall"
    if matches:
        groups = _score_groups(judged, [number > 0 for number in num_gold])
        called = "score (cosine)" if matches[0][0].probability is None else "probability"
        draw_scores(groups, folder / "scores.png", threshold=threshold, called=called)
        drawn["scores.png"] = "scores of right and of wrong terms"
    if trainer_state and any("eval_mrr" in line for line in trainer_state["log_history"]):
        best_step = trainer_state.get("best_global_step")
        draw_training_curves(trainer_state["log_history"], folder / "training.png", best_step=best_step)
        drawn["training.png"] = "training curves"
    return drawn


def _judge_each(evaluator: RetrievalEvaluator, evaluation: Evaluation) -> list[list[tuple[TermMatch, bool]]]:
    """The matches of each clip, and whether they are right; those that are neither right nor wrong are left out."""
    judged = []
    for row, found in zip(evaluator.rows_without_audio(), evaluation.matches, strict=True):
        right, excused = gold_ids(row, evaluation.index), unlabelled_ids(row, evaluation.index)
        judged.append([(match, match.term_id in right) for match in found if match.term_id not in excused])
    return judged


def _score_groups(
    judged: Sequence[Sequence[tuple[TermMatch, bool]]], has_term: Sequence[bool]
) -> dict[str, list[float]]:
    right = [match.confidence for found in judged for match, is_right in found if is_right]
    best_wrong: dict[bool, list[float]] = {True: [], False: []}
    for found, with_term in zip(judged, has_term, strict=True):
        best_wrong[with_term] += [match.confidence for match, is_right in found if not is_right][:1]
    return {
        "terms that were said": right,
        "best wrong term of a clip": best_wrong[True],
        "best term of a clip without one": best_wrong[False],
    }


def _clip(evaluator: RetrievalEvaluator, clip: int, folder: Path) -> dict[str, Any]:
    """What a page shows of a clip, whose sound is written for it, once."""
    row, name = evaluator.rows[clip], f"clips/{clip:06d}.wav"
    if not (folder / name).exists():
        soundfile.write(folder / name, clip_pcm(row), SAMPLING_RATE)
    return {
        "sound": name,
        "key": row.get("key") or f"clip {clip}",
        "terms": row["terms"],
        "text": row.get("text") or "",
    }


def _worst_misses(evaluation: Evaluation) -> list[tuple[int, int]]:
    """Clip and rank of the pairs that stand last, worst first."""
    places = _places_of_misses(evaluation)[:MOST_SHOWN]
    return [(int(evaluation.clips[place]), int(evaluation.pairs.ranks[place])) for place in places]


def _places_of_misses(evaluation: Evaluation) -> NDArray[np.int64]:
    """Where in `pairs` those stand that are not first, the worst rank first."""
    ranks = evaluation.pairs.ranks
    worst = np.argsort(-ranks, kind="stable")
    return worst[ranks[worst] > 1]


def _worst_alarms(judged: Sequence[Sequence[tuple[TermMatch, bool]]], lowest: float) -> list[tuple[int, TermMatch]]:
    alarms = [(clip, match) for clip, found in enumerate(judged) for match, right in found if not right]
    alarms = [(clip, match) for clip, match in alarms if match.reaches(lowest)]
    return sorted(alarms, key=lambda alarm: -alarm[1].confidence)[:MOST_SHOWN]
