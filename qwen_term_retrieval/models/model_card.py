"""The README of a model on the Hub: what it stands on, what it was trained on, how well it finds terms, how to call it.

`data`, `recall` and `thresholds` come from whoever trained it; a card never claims a number that nobody measured. The
numbers stand in its metadata too, recall as the `model-index` that the Hub shows: `read_card` gives them back. The text
is `model_card.md.jinja`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from qwen_term_retrieval.models.configuration import TermRetrievalConfig

TAGS = ["term-retrieval", "speech", "contrastive-learning", "qwen_term_retrieval"]

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_THRESHOLD_SECTION = re.compile(r"(?<=\n## Threshold\n).*?(?=\n## |\Z)", re.DOTALL)

_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


@dataclass(frozen=True)
class CardNumbers:
    """What a card says in its metadata: of the weights, the step and epoch they are of and the threshold they carry.

    `recall` is the first row of the card's table: `{"recall@1": 0.71, "recall@10": 0.93}`. None where nothing is said.
    """

    step: int | None = None
    epoch: float | None = None
    threshold: float | None = None
    recall: dict[str, float] = field(default_factory=dict)


def model_card(
    config: TermRetrievalConfig,
    *,
    repository: str = "",
    data: str | None = None,
    recall: Sequence[Mapping[str, Any]] | None = None,
    thresholds: Sequence[Mapping[str, Any]] | None = None,
    previous_threshold: float | None = None,
    step: int | None = None,
    epoch: float | None = None,
) -> str:
    """The README of a model, Markdown with YAML metadata.

    Args:
        config: of the model.
        repository: its Hub id.
        data: what it was trained on, Markdown.
        recall: one mapping a row of the recall table, all with the same keys, such as
            `{"bank": "10,000 terms", "n": 342, "recall@1": 0.91, "recall@10": 0.98}`.
        thresholds: rows of the same kind on what the config's threshold does: precision, recall, false alarms.
        previous_threshold: the one that it had before.
        step, epoch: of training, that the weights are of.
    """
    towers = (config.audio_tower, *config.text_tower.split(" + "))
    base_models = [tower for tower in towers if isinstance(tower, str) and _HUB_ID.fullmatch(tower)]
    title = repository.rpartition("/")[2] or "Term retriever"
    known = {"step": step, "epoch": epoch, "threshold": threshold_of(config)}
    metadata = ModelCardData(
        library_name="qwen_term_retrieval",
        tags=TAGS,
        base_model=base_models or None,
        model_name=title if recall else None,
        eval_results=_eval_results(recall) if recall else None,
        term_retrieval={name: value for name, value in known.items() if value is not None} or None,
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(_TEMPLATE),
        config=config,
        title=title,
        repository=repository or "path/to/this/model",
        data=data,
        recall=recall,
        thresholds=thresholds,
        previous_threshold=previous_threshold,
        threshold=threshold_of(config),
        step=step,
        epoch=epoch,
    )
    return f"{card}\n"


def with_threshold(
    card: str,
    config: TermRetrievalConfig,
    thresholds: Sequence[Mapping[str, Any]] | None = None,
    previous: float | None = None,
) -> str:
    """The card of a model whose threshold was chosen anew: what it says of it and of the one before, and all else.

    A card without a section on the threshold is somebody's own, and comes back unchanged.

    Raises:
        ValueError: its metadata is no YAML.
    """
    if not _THRESHOLD_SECTION.search(card):
        return card
    read_card(card)
    (section,) = _THRESHOLD_SECTION.findall(model_card(config, thresholds=thresholds, previous_threshold=previous))
    changed = ModelCard(_THRESHOLD_SECTION.sub(lambda _: section, card))
    about = changed.data.to_dict().get("term_retrieval") or {}
    changed.data["term_retrieval"] = about | {"threshold": threshold_of(config)}
    return str(changed)


def threshold_of(config: TermRetrievalConfig) -> float | None:
    """What a match must reach: a probability where the model verifies what it finds, else a cosine."""
    return config.threshold if config.verifier is None else config.verifier["threshold"]


def read_card(text: str) -> CardNumbers:
    """The numbers of a card; none of those that it does not hold.

    Raises:
        ValueError: its metadata is no YAML.
    """
    try:
        data = ModelCard(text, ignore_metadata_errors=True).data
    except yaml.YAMLError as error:
        raise ValueError(f"the card's metadata is no YAML: {str(error).splitlines()[0]}") from error
    results = getattr(data, "eval_results", None) or []
    first = [result for result in results if result.dataset_name == results[0].dataset_name]
    about = data.to_dict().get("term_retrieval") or {}
    return CardNumbers(
        step=about.get("step"),
        epoch=about.get("epoch"),
        threshold=about.get("threshold"),
        recall={result.metric_type: float(result.metric_value) for result in first},
    )


def _eval_results(recall: Sequence[Mapping[str, Any]]) -> list[EvalResult]:
    """For the Hub's `model-index`: each recall of the table, on what the words of its row say."""
    results = []
    for row in recall:
        name = ", ".join(value for value in row.values() if isinstance(value, str)) or "evaluation"
        results += [
            EvalResult("information-retrieval", name, name, metric, round(float(value), 4))
            for metric, value in row.items()
            if metric.startswith("recall@")
        ]
    return results
