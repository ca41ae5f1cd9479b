"""From the folder of a trained model to one that can come along: half precision, a card, and what is known of it.

Heads, adapters, phoneme head, verifier and thresholds go along; the base tower does not. What the card says comes from
a file of facts and from what benchmarks wrote, never from here.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData

from qwen_term_retrieval.models.model_card import TAGS
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel
from qwen_term_retrieval.models.weights.shipped import ABOUT
from qwen_term_retrieval.storage.staging import check_free

logger = logging.getLogger(__name__)

MOST_BYTES = 25_000_000
# What a card must say; each a key of the facts.
FACTS = ("data", "voices", "languages", "licence", "limits", "seed")
_TEMPLATE = Path(__file__).with_name("shipped_card.md.jinja")


def ship_model(
    model: str | Path,
    out: str | Path,
    facts: Mapping[str, Any],
    recall: Sequence[Mapping[str, Any]] = (),
    *,
    overwrite: bool = False,
) -> Path:
    """Write `out`: weights in float16, config, card and `about.json`, whole or not at all.

    Args:
        model: folder of a trained model.
        out: folder to make; its name is the model's.
        facts: `data`, `voices` and `limits` in words, `languages` a list of codes, `licence`, `seed`.
        recall: rows of one kind, the one of `qtr models` first; see `recall_rows_of`.

    Raises:
        ValueError: a fact is missing, or the model is larger than 25 MB.
        FileNotFoundError: no such model.
        FileExistsError: there is something at `out`.
    """
    out = Path(out)
    missing = [name for name in FACTS if facts.get(name) in (None, "", [])]
    if missing:
        raise ValueError(f"the facts say nothing of {', '.join(missing)}; a card needs {', '.join(FACTS)}")
    check_free(out, "a shipped model", ABOUT, overwrite=overwrite)
    loaded = TermRetrievalModel.from_pretrained(model)
    if loaded.config.threshold is None and loaded.config.verifier is None:
        logger.warning("%s has neither verifier nor threshold: every search gives the nearest terms", model)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        new = Path(scratch) / "new"
        loaded.save_pretrained(new, dtype=torch.float16)
        about = {
            "base_tower": loaded.config.audio_tower,
            **{name: facts[name] for name in FACTS},
            "recall": [dict(row) for row in recall],
        }
        (new / ABOUT).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (new / "README.md").write_text(_card(out.name, loaded, facts, recall), encoding="utf-8")
        size = sum(path.stat().st_size for path in new.iterdir())
        if size > MOST_BYTES:
            raise ValueError(
                f"{model} is {size / 1e6:.1f} MB in half precision, and at most {MOST_BYTES / 1e6:.0f} MB come along: "
                "was a base tower trained as a whole? LoRA keeps it out"
            )
        new.chmod(0o755)
        for file in new.iterdir():
            file.chmod(0o644)
        if out.exists():
            out.rename(Path(scratch) / "old")
        new.rename(out)
    return out


def recall_rows_of(results: Sequence[Mapping[str, Any]], system: str) -> list[dict[str, Any]]:
    """Rows of a card from what `benchmarks.real_speech --second-look` wrote: one a test set and bank.

    Args:
        results: contents of such JSON files.
        system: which of their systems the model is.

    Raises:
        ValueError: a file knows no such system; names those that it has.
    """
    rows = []
    for result in results:
        if system not in result["systems"]:
            raise ValueError(f"{result['test_set']}: no system {system!r}; there are {', '.join(result['systems'])}")
        measured = result["systems"][system]
        for bank, recall in measured["recall"].items():
            kept = result.get("belief", {}).get(bank, {}).get("stored", {})
            rows.append(
                {
                    "speech": f"{result['test_set']}: {result['speakers']}",
                    "clips": result["n"],
                    "bank": f"{result['banks'][bank]:,} terms",
                    "recall@1": recall["R@1"],
                    "recall@10": recall["R@10"],
                    "precision": kept.get("precision"),
                    "recall": kept.get("recall"),
                }
            )
    return rows


def _card(name: str, model: TermRetrievalModel, facts: Mapping[str, Any], recall: Sequence[Mapping[str, Any]]) -> str:
    config = model.config
    tower = config.audio_tower if isinstance(config.audio_tower, str) else None
    metadata = ModelCardData(
        library_name="qwen_term_retrieval", tags=TAGS, language=list(facts["languages"]), license=facts["licence"],
        base_model=[tower] if tower else None,
    )  # fmt: skip
    card = ModelCard.from_template(
        metadata, template_path=str(_TEMPLATE), title=name, config=config, facts=facts, rows=list(recall)
    )
    return f"{card}\n"
