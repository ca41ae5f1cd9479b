"""Tensors to embeddings: towers, pooling, and the model that joins them."""

from qwen_term_retrieval.models.checkpoints import CheckpointError, resolve_checkpoint
from qwen_term_retrieval.models.configuration import TermRetrievalConfig
from qwen_term_retrieval.models.embeddings import AudioEmbeddings
from qwen_term_retrieval.models.retrieval_model import TermRetrievalModel, TermRetrievalOutput

__all__ = [
    "AudioEmbeddings",
    "CheckpointError",
    "TermRetrievalConfig",
    "TermRetrievalModel",
    "TermRetrievalOutput",
    "resolve_checkpoint",
]
