"""Matches to numbers and pictures."""

from qwen_term_retrieval.evaluation.evaluator import RetrievalEvaluator, evaluate_vectors
from qwen_term_retrieval.evaluation.ranking import bootstrap_interval, mean_reciprocal_rank, rank_of_gold, recall_at_k

__all__ = [
    "RetrievalEvaluator",
    "bootstrap_interval",
    "evaluate_vectors",
    "mean_reciprocal_rank",
    "rank_of_gold",
    "recall_at_k",
]
