"""Pretrained weights: from the name of a checkpoint to tensors that can be trusted.

checkpoints.py    a name to a folder on this machine
base_weights.py   the weights below a retriever, and whether they are the right ones
ct2_whisper.py    Whisper models of CTranslate2, turned into checkpoints
model_names.py    a folder, a Hub id, or a mistyped name, told at once
shipped.py        models that came along with the library
revisions.py      which models and revisions there are
"""
