"""The README of a model on the Hub: what it stands on, what it was trained on, how well it finds terms, how to call it.

`data`, `recall` and `thresholds` come from whoever trained it; a card never claims a number that nobody measured. The
numbers stand in its metadata too, recall as the `model-index` that the Hub shows: `read_card` gives them back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from qwen_term_retrieval.models.configuration import TermRetrievalConfig

TAGS = ["term-retrieval", "speech", "contrastive-learning", "qwen_term_retrieval"]

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_THRESHOLD_SECTION = re.compile(r"(?<=\n## Threshold\n).*?(?=\n## |\Z)", re.DOTALL)

_CARD = """\
---
{metadata}
---
# {title}

A speech-to-term retriever: it hears which terms of a glossary are spoken in a clip of speech, and where.

```python
from qwen_term_retrieval import TermRetriever

retriever = TermRetriever.from_pretrained("{repository}")
retriever.index(["atrial fibrillation", "Kubernetes"])
retriever.search("clip.wav", top_k=10)   # [TermMatch(term, score, start, end), …]
```

```
qtr search {repository} glossary.txt clip.wav
qtr models {repository}        # its revisions; from_pretrained(…, revision="best") takes one
```

## What it stands on
| | |
|---|---|
{parts}

The base towers are not in this repository: they are resolved by name, checked by digest, and refused if they differ.

## Training data
{data}

## Recall
{recall}

## Threshold
{thresholds}
"""


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
        step, epoch: of training, that the weights are of.
    """
    towers = (config.audio_tower, *config.text_tower.split(" + "))
    base_models = [tower for tower in towers if isinstance(tower, str) and _HUB_ID.fullmatch(tower)]
    title = repository.rpartition("/")[2] or "Term retriever"
    known = {"step": step, "epoch": epoch, "threshold": config.threshold}
    parts = _parts(config)
    if step is not None:
        parts.append(("weights", f"of step {step:,}" + (f", epoch {epoch:.2f}" if epoch is not None else "")))
    metadata = ModelCardData(
        library_name="qwen_term_retrieval",
        tags=TAGS,
        pipeline_tag="feature-extraction",
        base_model=base_models or None,
        model_name=title if recall else None,
        eval_results=_eval_results(recall) if recall else None,
        term_retrieval={name: value for name, value in known.items() if value is not None} or None,
    )
    return _CARD.format(
        metadata=metadata.to_yaml(),
        title=title,
        repository=repository or "path/to/this/model",
        parts="\n".join(f"| {name} | {value} |" for name, value in parts),
        data=data or "Not stated.",
        recall=_table(recall) if recall else "Not measured.",
        thresholds=_threshold(config, thresholds),
    )


def with_threshold(
    card: str, config: TermRetrievalConfig, thresholds: Sequence[Mapping[str, Any]] | None = None
) -> str:
    """The card of a model whose threshold was chosen anew: what it says of it, and all else as it was.

    A card without a section on the threshold is somebody's own, and comes back unchanged.

    Raises:
        ValueError: its metadata is no YAML.
    """
    if not _THRESHOLD_SECTION.search(card):
        return card
    read_card(card)
    changed = ModelCard(_THRESHOLD_SECTION.sub(lambda _: _threshold(config, thresholds) + "\n", card))
    about = changed.data.to_dict().get("term_retrieval") or {}
    changed.data["term_retrieval"] = about | {"threshold": config.threshold}
    return str(changed)


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


def _threshold(config: TermRetrievalConfig, rows: Sequence[Mapping[str, Any]] | None) -> str:
    if config.threshold is None:
        return "None was chosen: every search gives the nearest terms. `qtr calibrate` chooses one on a dev set."
    said = (
        f"A term counts as heard from a score of {config.threshold:.4f} on, unless `threshold=` says otherwise. It "
        "belongs to glossaries as large as the one it was chosen with."
    )
    return f"{said}\n\n{_table(rows)}" if rows else said


def _parts(config: TermRetrievalConfig) -> list[tuple[str, str]]:
    audio_tower = config.audio_tower if isinstance(config.audio_tower, str) else "its own"
    windows = config.windows
    pooling = f"{config.pooling} of {', '.join(map(str, config.segments))} segments"
    return [
        ("audio tower", audio_tower + _training(config.lora, config.audio_tower_saved)),
        ("text tower", config.text_tower + _training(config.text_lora, config.text_tower_saved)),
        ("embedding", f"{config.embedding_dim} dimensions, {pooling}"),
        ("windows", f"{windows['sizes']} frames, every {windows['stride']}" if windows else "one over the whole clip"),
    ]


def _training(lora: Mapping[str, Any] | None, saved: bool) -> str:
    return f", LoRA of rank {lora['r']}" if lora else ", trained" if saved else ""


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_number(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
