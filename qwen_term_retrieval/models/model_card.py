"""The README of a model on the Hub: what it stands on, what it was trained on, how well it finds terms, how to call it.

`data` and `recall` come from whoever trained it; a card never claims a number that nobody measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from qwen_term_retrieval.models.configuration import TermRetrievalConfig

TAGS = ["term-retrieval", "speech", "contrastive-learning", "qwen_term_retrieval"]

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")

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

## What it stands on
| | |
|---|---|
{parts}

The base towers are not in this repository: they are resolved by name, checked by digest, and refused if they differ.

## Training data
{data}

## Recall
{recall}
"""


def model_card(
    config: TermRetrievalConfig,
    *,
    repository: str = "",
    data: str | None = None,
    recall: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The README of a model, Markdown with YAML metadata.

    Args:
        config: of the model.
        repository: its Hub id.
        data: what it was trained on, Markdown.
        recall: one mapping a row of the recall table, all with the same keys, such as
            `{"bank": "10,000 terms", "n": 342, "recall@1": 0.91, "recall@10": 0.98}`.
    """
    towers = (config.audio_tower, *config.text_tower.split(" + "))
    base_models = [tower for tower in towers if isinstance(tower, str) and _HUB_ID.fullmatch(tower)]
    metadata = ModelCardData(
        library_name="qwen_term_retrieval", tags=TAGS, pipeline_tag="feature-extraction", base_model=base_models or None
    )
    return _CARD.format(
        metadata=metadata.to_yaml(),
        title=repository.rpartition("/")[2] or "Term retriever",
        repository=repository or "path/to/this/model",
        parts="\n".join(f"| {name} | {value} |" for name, value in _parts(config)),
        data=data or "Not stated.",
        recall=_table(recall) if recall else "Not measured.",
    )


def _parts(config: TermRetrievalConfig) -> list[tuple[str, str]]:
    audio_tower = config.audio_tower if isinstance(config.audio_tower, str) else "its own"
    windows = config.windows
    weights = "attention over" if config.pooling == "attention" else "pyramid of"
    return [
        ("audio tower", audio_tower + _training(config.lora, config.audio_tower_saved)),
        ("text tower", config.text_tower + _training(config.text_lora, config.text_tower_saved)),
        ("embedding", f"{config.embedding_dim} dimensions, {weights} {', '.join(map(str, config.segments))} segments"),
        ("windows", f"{windows['sizes']} frames, every {windows['stride']}" if windows else "one over the whole clip"),
    ]


def _training(lora: Mapping[str, Any] | None, saved: bool) -> str:
    return f", LoRA of rank {lora['r']}" if lora else ", trained" if saved else ""


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_number(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
