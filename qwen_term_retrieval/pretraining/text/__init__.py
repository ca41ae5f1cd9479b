"""Text pre-training: pairs of prompt and response, from Parquet to a model, in memory that does not grow with them.

preparation/       files of pairs to Parquet, splits, a report, a tokenizer and token packs
arguments.py       every setting, and the flags of the system before this one
order.py           which pairs come when
batches.py         pairs to what a model reads: side by side, or packed into rows
architectures.py   models to be trained from nothing, or on
losses.py          the loss of a step
evaluation.py      loss, perplexity, bits a byte, and answers to read
trainer.py         the trainer
step_memory.py     whether a step fits into memory
flops.py           useful operations of a step
model_card.py      the README of a model
run.py             one run, from settings to a saved model
exporting.py       the encoder of a T5 as a model of its own
"""
