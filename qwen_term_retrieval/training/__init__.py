"""Training a term retriever: settings, batches, losses over all ranks, evaluation. `runs/` has what any trainer needs.

trainer.py          `TermRetrievalTrainer`: every override of `transformers.Trainer`, each left to a part
run.py              one run, from settings to a model that searches: what `scripts/train.py` calls
tuning.py           many runs, for the best settings: what `scripts/tune.py` calls
arguments.py        settings of model, data and objective
gradcache.py        contrastive batches larger than memory
recall.py           Recall@k of the evaluation rows, by all ranks
search.py           trials of a hyperparameter search that do not see each other
data/               rows -> clips -> batches
negatives/          hard negatives: mined, sounding alike, kept
checks/             what is refused before the first step
"""
