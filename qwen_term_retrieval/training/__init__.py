"""The run: settings, batches, losses over all ranks, checkpoints, the Hub.

What knows terms:

trainer.py         `TermRetrievalTrainer`: every override of `transformers.Trainer`, each left to a part
run.py             one run, from settings to a model that searches: what `scripts/train.py` calls
tuning.py          many runs, for the best settings: what `scripts/tune.py` calls
arguments.py       settings of model, data and objective
recall.py          Recall@k of the evaluation rows, by all ranks
term_encoding.py   terms embedded by all ranks
data/              rows -> clips -> batches
negatives/         hard negatives: mined, sounding alike, kept
checks/            whether a step fits into memory

What any `Trainer` of ours is made of:

run_arguments.py   settings of any run
recipes.py         settings from a YAML recipe and flags
run_callbacks.py   patience, guard, throughput, memory check, in their order
checkpoints.py     which is the best, and whether the run is over
resuming.py        the newest whole checkpoint, over the data that it began with
publishing.py      checkpoints on the Hub
gradcache.py       contrastive batches larger than memory
loss_means.py      parts of a loss as means over steps and ranks
search.py          trials of a hyperparameter search that do not see each other
trackers.py        `report_to`, checked
unsupported.py     settings and launches that are refused
"""
