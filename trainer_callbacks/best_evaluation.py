"""Which evaluation of a run is its best: for the checkpoint that is kept, for patience, and for the star on screen."""

from __future__ import annotations

import math
from collections.abc import Mapping

from transformers import TrainerState, TrainingArguments


def metric_name(args: TrainingArguments) -> str:
    """`metric_for_best_model` as evaluations of the run call it."""
    return f"eval_{(args.metric_for_best_model or '').removeprefix('eval_')}"


def is_best(args: TrainingArguments, state: TrainerState, metrics: Mapping[str, float]) -> bool:
    """Whether an evaluation is better than all before it, of which `state.best_metric` is the best.

    `args.metric_for_best_model` says so; where it is the same, as recall is soon on an easy set, the MRR does.
    """
    value, best = metrics.get(metric_name(args)), state.best_metric
    if value is None or best is None:
        return value is not None
    if value != best:
        return value > best if args.greater_is_better else value < best
    of_best = [entry for entry in state.log_history if entry["step"] == state.best_global_step and "eval_mrr" in entry]
    return bool(of_best) and metrics.get("eval_mrr", -math.inf) > of_best[-1]["eval_mrr"]
