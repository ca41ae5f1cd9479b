"""The card of a run's model: what it was trained on, and how well it finds terms."""

from __future__ import annotations

from typing import Any

from qwen_term_retrieval.evaluation.evaluator import RECALL_AT
from qwen_term_retrieval.evaluation.report import GROUPS

MAIN_METRIC = f"recall@{RECALL_AT[0]}"


def recall_rows(metrics: dict[str, float], prefix: str, split: str) -> list[dict[str, Any]]:
    """Rows of the card's recall table from metrics such as `eval_recall@10` and `eval_recall@10_unseen`."""
    names = [*(f"recall@{k}" for k in RECALL_AT), "mrr"]
    return [
        {"split": split, "terms": group, "pairs": int(metrics[f"{prefix}_pairs{suffix}"])}
        | {name: metrics[f"{prefix}_{name}{suffix}"] for name in names}
        for suffix, group in GROUPS.items()
        if f"{prefix}_{MAIN_METRIC}{suffix}" in metrics
    ]


def threshold_rows(metrics: dict[str, float], prefix: str, split: str) -> list[dict[str, Any]]:
    """A row of the card's threshold table from metrics such as `test_precision`; none where no threshold was tried."""
    names = ("precision", "recall", "f1", "false_alarms_per_minute")
    if f"{prefix}_precision" not in metrics:
        return []
    return [{"split": split} | {name: metrics.get(f"{prefix}_{name}") for name in names}]
