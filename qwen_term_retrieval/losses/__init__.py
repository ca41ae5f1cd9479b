"""Embeddings to a scalar."""

from qwen_term_retrieval.losses.contrastive import Candidates, Queries, contrastive_loss
from qwen_term_retrieval.losses.hard_negatives import hard_negative_loss
from qwen_term_retrieval.losses.no_term import no_term_loss
from qwen_term_retrieval.losses.objective import Embeddings, Objective
from qwen_term_retrieval.losses.sigmoid import sigmoid_loss

__all__ = [
    "Candidates",
    "Embeddings",
    "Objective",
    "Queries",
    "contrastive_loss",
    "hard_negative_loss",
    "no_term_loss",
    "sigmoid_loss",
]
