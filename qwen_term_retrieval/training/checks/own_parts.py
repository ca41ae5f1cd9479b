"""Parts of `Trainer` that `TermRetrievalTrainer` has of its own: refused, not passed over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What takes the place of each.
_OWN_PARTS = {
    "data_collator": "it makes its own, from the settings of the run",
    "compute_loss_func": "losses/objective.py is what is minimised; TermRetrievalArguments has its weights",
    "compute_metrics": "evaluations report recall; a callback's on_evaluate may add to them",
    "preprocess_logits_for_metrics": "evaluations report recall and keep no logits",
}


def refuse_own_parts(given: Mapping[str, Any]) -> None:
    """Refuse arguments of `Trainer` that `TermRetrievalTrainer` would not use.

    Raises:
        TypeError: naming the first, and what takes its place.
    """
    for name, instead in _OWN_PARTS.items():
        if given.get(name) is not None:
            raise TypeError(f"TermRetrievalTrainer takes no {name}: {instead}")
