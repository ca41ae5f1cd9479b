"""Matches to numbers and pictures.

ranking.py              ranks, Recall@k, MRR and their intervals, from plain tensors
spotting.py             average precision, recall at a precision and at a rate of false alarms
roc.py                  pairs of a clip and a term: area under the ROC curve, equal error rate
ranked_pairs.py         ranks of the terms said in clips among a bank, and the metrics of them
evaluator.py            a model over clips as a search runs it: banks, seen and unseen terms, thresholds, spans
long_clips.py           long clips, whose windows are scored as they are read
dataset_evaluation.py   an evaluator from names, as a command line gives them
recall_metric.py        Recall@k for the `evaluate` library
report.py               numbers for people: tables in Markdown, recall over k as a picture
report_pictures.py      the pictures of an evaluation
training_curves.py      the picture of a run
alignment_picture.py    the picture of a term laid over a clip
html_report.py          the page of `qtr report`, with its pictures and clips
shipping.py             a trained model made one that comes along, with its card

`report.html.jinja` is that page's text, `shipped_card.md.jinja` that card's.
"""

from qwen_term_retrieval.evaluation.evaluator import RetrievalEvaluator
from qwen_term_retrieval.evaluation.ranked_pairs import evaluate_vectors
from qwen_term_retrieval.evaluation.ranking import bootstrap_interval, mean_reciprocal_rank, rank_of_gold, recall_at_k
from qwen_term_retrieval.evaluation.roc import area_under_roc, equal_error_rate
from qwen_term_retrieval.evaluation.spotting import average_precision, spotting_metrics

__all__ = [
    "RetrievalEvaluator",
    "area_under_roc",
    "average_precision",
    "bootstrap_interval",
    "equal_error_rate",
    "evaluate_vectors",
    "mean_reciprocal_rank",
    "rank_of_gold",
    "recall_at_k",
    "spotting_metrics",
]
