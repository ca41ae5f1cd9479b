"""Tensors to embeddings: towers, pooling, and the model that joins them."""

from qwen_term_retrieval.models.configuration import TermRetrievalConfig
from qwen_term_retrieval.models.embeddings import AudioEmbeddings
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel, TermRetrievalOutput
from qwen_term_retrieval.models.weights.checkpoints import CheckpointError, resolve_checkpoint

__all__ = [
    "AudioEmbeddings",
    "CheckpointError",
    "TermRetrievalConfig",
    "TermRetrievalModel",
    "TermRetrievalOutput",
    "resolve_checkpoint",
]
