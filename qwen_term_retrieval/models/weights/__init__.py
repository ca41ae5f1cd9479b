"""Pretrained weights: from the name of a checkpoint to tensors that can be trusted.

checkpoints   a name to a folder on this machine
base_weights  the weights below a retriever, and whether they are the right ones
ct2_whisper   Whisper models of CTranslate2, turned into checkpoints
revisions     which models and revisions there are
"""
