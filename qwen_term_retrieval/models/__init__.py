"""Tensors to embeddings: towers, pooling, and the model that joins them.

audio_towers/, text_towers/        the encoders of clips and of terms
weights/                           pretrained checkpoints, fetched and checked
retrieval_model.py                 `TermRetrievalModel`: both towers and their heads
pretrained_model.py                which of its weights are trained, saved and loaded
configuration.py                   its settings, `config.json`
lora.py                            low-rank adapters in both towers
attention_backend.py               the attention that encoders run with
spans/                             spans of frames to vectors that remember their order
phoneme_head.py                    which sound is heard when
embeddings.py                      what `encode_audio` gives
placing.py                         a model by name, put on a device, in a precision
evaluation_mode.py                 a model as it answers, without dropout and graph
frame_cache.py                     frames of a frozen audio tower, computed once
flops.py                           operations of a step, and what a device can do
model_card.py                      the README of a model on the Hub
sentence_transformers_module.py    a model for those who search with sentence-transformers
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
