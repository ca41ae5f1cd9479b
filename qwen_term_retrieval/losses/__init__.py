"""Embeddings to a scalar."""

from qwen_term_retrieval.losses.contrastive import Candidates, Queries, contrastive_loss

__all__ = ["Candidates", "Queries", "contrastive_loss"]
