"""Tensors to embeddings: towers, pooling, and the model that joins them.

audio_towers/, text_towers/   the encoders of clips and of terms
weights/                      pretrained checkpoints, fetched and checked
retrieval_model               `TermRetrievalModel`: both towers and their heads
pretrained_model              which of its weights are trained, saved and loaded
configuration                 its settings, `config.json`
lora                          low-rank adapters in both towers
attention_backend             the attention that encoders run with
pooling, attention_pooling    spans of frames to vectors that remember their order
windows                       the grid of spans that a clip is searched with
embeddings                    what `encode_audio` gives
frame_cache                   frames of a frozen audio tower, computed once
flops                         operations of a step, and what a device can do
model_card                    the README of a model on the Hub
sentence_transformers_module  a model for those who search with sentence-transformers
"""

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
