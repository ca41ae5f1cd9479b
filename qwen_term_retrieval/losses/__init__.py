"""Embeddings to a scalar."""

from qwen_term_retrieval.losses.contrastive import Queries, contrastive_loss

__all__ = ["Queries", "contrastive_loss"]
