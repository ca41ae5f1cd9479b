"""Audio pre-training beside NeMo 3.0.0, in one run; and what it is worth to a retriever.

__main__.py      sections, and the report
nemo_venv.py     an environment with NeMo, made for this benchmark
nemo_model.py    NeMo's model with the weights of ours
equality.py      mel, tokens, encoder, loss and gradients against NeMo's; masks against their formula
speed.py         quantizer, masks, collating, and whole steps, beside NeMo's
gpu.py           NEST-L in bf16 on a GPU: audio-hours a second, MFU
reference.py     what NeMo gives for a tiny model, kept for the tests
worth.py         the retriever from scratch, from clean and from denoising pre-training
"""
