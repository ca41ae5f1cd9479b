"""Audio pre-training (NEST, Huang et al. 2024): from speech without labels to an audio tower.

configuration.py   `NestConfig`, and the sizes that are known by their names
model.py           `NestForPreTraining`: encoder, head, quantizer
quantizer.py       speech to tokens that are never trained
masking.py         which frames of a clip are hidden
first_head.py      the head before the first step: how often each code comes
losses.py          the loss of hidden tokens
arguments.py       every setting
data.py            clips, what is heard in their place, and what is hidden, into batches
evaluation.py      loss and accuracy, beside those of a model that hears nothing
trainer.py         the trainer
step_memory.py     whether a step fits into memory
flops.py           useful operations of a step
model_card.py      the README of a model
run.py             one run, from settings to a saved model
nemo.py            NeMo's checkpoints, read and written
"""

from qwen_term_retrieval.pretraining.audio.configuration import NestConfig
from qwen_term_retrieval.pretraining.audio.data import ClipSettings, NestClips
from qwen_term_retrieval.pretraining.audio.model import NestForPreTraining
from qwen_term_retrieval.pretraining.audio.trainer import PretrainingTrainer

__all__ = ["ClipSettings", "NestClips", "NestConfig", "NestForPreTraining", "PretrainingTrainer"]
