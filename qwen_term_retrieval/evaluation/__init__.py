"""Matches to numbers and pictures.

ranking.py              ranks, Recall@k, MRR and their intervals, from plain tensors
evaluator.py            a model over clips as a search runs it: banks, seen and unseen terms, thresholds, spans
dataset_evaluation.py   an evaluator from names, as a command line gives them
recall_metric.py        Recall@k for the `evaluate` library
report.py               numbers for people: tables in Markdown, recall over k as a picture
report_pictures.py      the pictures of an evaluation
training_curves.py      the picture of a run
html_report.py          the page of `qtr report`, with its pictures and clips

`report.html.jinja` is that page's text.
"""

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
