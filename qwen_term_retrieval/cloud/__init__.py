"""Rented machines: training in containers that may be taken away at any time.

launching.py          a training script on N GPUs, what it writes kept as it goes; on any machine
modal_containers.py   what a Modal container that trains is made of, and what it does
modal_runs.py         from your machine: a run claimed, its pack uploaded, started, its results downloaded

A trainer's Modal entry is its app, one function and one entry point: `scripts/modal_train.py` is the model.
"""
